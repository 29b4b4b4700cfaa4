"""Images that are ready in the sense of their users: services that answer, programs that have done their work.

Each listens on a port of its own on loopback, since measured containers use the machine's network.
"""

from dataclasses import replace

from benchmarks.images.recipe import INSTALL, PATH, Busybox, Debootstrap, GoProgram, Recipe

_DEBIAN = Debootstrap("bookworm")
_LITTLE = {"Env": [PATH, "LANG=C.UTF-8"], "WorkingDir": "/srv/app"}


def _debian(name: str, *scripts: str, **config: str | list[str]) -> Recipe:
    """Packages on Debian's base, and what runs there."""
    return Recipe(name=name, base=_DEBIAN, scripts=scripts, config={**_LITTLE, **config})


def _app(file: str, text: str) -> str:
    """The script that writes a program into the directory of the application."""
    return f"\nmkdir /srv/app\ncat >/srv/app/{file} <<'END'\n{text}END\n"


_NODE = _debian(
    "node",
    f"{INSTALL} nodejs",
    _app(
        "server.js",
        """const http = require("http");
http.createServer((request, answer) => answer.end("hello from node\\n")).listen(18080, "127.0.0.1");
""",
    ),
    Entrypoint=["node", "/srv/app/server.js"],
)

_NGINX = _debian(
    "nginx",
    f"{INSTALL} nginx-light",
    """
cat >/etc/nginx/sites-enabled/default <<'END'
server { listen 127.0.0.1:18081; root /var/www/html; index index.nginx-debian.html; }
END
""",
    WorkingDir="/",
    Entrypoint=["nginx", "-g", "daemon off;"],
)

_REDIS = _debian(
    "redis",
    f"{INSTALL} redis-server redis-tools",
    WorkingDir="/tmp",
    Entrypoint=["redis-server", "--port", "18082", "--bind", "127.0.0.1", "--save", ""],
)

# Ready when a query is answered: the client is part of the image, and of what is read.
_POSTGRES = _debian(
    "postgres",
    f"{INSTALL} postgresql-15",
    """
rm -rf /var/lib/postgresql/15
mkdir -p /srv/app /srv/data
chown postgres: /srv/data
setpriv --reuid postgres --regid postgres --clear-groups /usr/lib/postgresql/15/bin/initdb -A trust /srv/data
cat >/srv/app/start <<'END'
#!/bin/sh
cd /srv/data
/usr/lib/postgresql/15/bin/postgres -D /srv/data -k /tmp -p 18083 -c listen_addresses= &
until /usr/lib/postgresql/15/bin/psql -h /tmp -p 18083 -d postgres -c 'select 1' >/dev/null 2>&1; do sleep 0.02; done
echo ready
wait
END
chmod 755 /srv/app/start
""",
    User="postgres",
    Entrypoint=["/srv/app/start"],
)

_JAVA = _debian(
    "java",
    f"mkdir -p /usr/share/man/man1; {INSTALL} openjdk-17-jre-headless",
    f"""
mkdir /srv/app
cat >/srv/app/Hello.java <<'END'
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

public class Hello {{
    public static void main(String[] arguments) throws Exception {{
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", 18084), 0);
        server.createContext("/", exchange -> {{
            byte[] hello = "hello from java".getBytes();
            exchange.sendResponseHeaders(200, hello.length);
            exchange.getResponseBody().write(hello);
            exchange.close();
        }});
        server.start();
    }}
}}
END
{INSTALL} openjdk-17-jdk-headless
javac -d /srv/app /srv/app/Hello.java
apt-get purge -yq openjdk-17-jdk-headless
""",
    Entrypoint=["java", "-cp", "/srv/app", "Hello"],
)

_DJANGO = _debian(
    "django",
    f"{INSTALL} python3-django",
    _app(
        "site.py",
        """import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse
from django.template import engines
from django.urls import path

settings.configure(
    DEBUG=False, ROOT_URLCONF="__main__", ALLOWED_HOSTS=["*"], SECRET_KEY="for measurements",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)


def first_page(request):
    page = engines["django"].from_string("<h1>{{ words|title }}</h1>")
    return HttpResponse(page.render({"words": "hello from django"}))


urlpatterns = [path("", first_page)]
execute_from_command_line([sys.argv[0], "runserver", "--noreload", "127.0.0.1:18085"])
""",
    ),
    Entrypoint=["python3", "/srv/app/site.py"],
)

_GCC = _debian(
    "gcc",
    f"{INSTALL} gcc libc6-dev",
    _app(
        "hello.c",
        """#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) { puts("ready"); return 0; }
""",
    ),
    Entrypoint=["sh", "-c", "gcc -O2 -o /tmp/hello /srv/app/hello.c && exec /tmp/hello"],
)

_GO = Recipe(
    name="go",
    base=GoProgram("""package main

import (
	"fmt"
	"net/http"
)

func main() {
	hello := func(answer http.ResponseWriter, _ *http.Request) { fmt.Fprintln(answer, "hello from go") }
	http.HandleFunc("/", hello)
	http.ListenAndServe("127.0.0.1:18086", nil)
}
"""),
    scripts=(),
    config={"Env": [PATH], "WorkingDir": "/", "Entrypoint": ["/app"]},
)

# A gigabyte that compresses to three quarters, as what is already packed a little does.
_LARGE = Recipe(
    name="large",
    base=Busybox(),
    scripts=(
        """
mkdir -p /srv/app /data
for number in $(seq 1024); do head -c 786432 /dev/urandom | base64 -w 0 >/data/$number; done
""",
    ),
    config={**_LITTLE, "Entrypoint": ["sh", "-c", "echo ready"]},
)

_MANY = Recipe(
    name="many",
    base=Busybox(),
    scripts=(
        """
mkdir -p /srv/app /data
for directory in $(seq 1000); do
    mkdir /data/$directory
    for number in $(seq 100); do echo "file $number of directory $directory" >/data/$directory/$number; done
done
""",
    ),
    config={**_LITTLE, "Entrypoint": ["sh", "-c", "find /data -type f | wc -l; echo ready"]},
)

# The same images as a nightly build makes them after security updates: everything is installed anew, and newer.
_SECURITY = """
[ -n "$SECURITY" ]
echo "deb $SECURITY bookworm-security main" >>/etc/apt/sources.list
"""


def _upgraded(recipe: Recipe) -> Recipe:
    first, *rest = recipe.scripts
    return replace(recipe, name=f"{recipe.name}-upgraded", scripts=(_SECURITY + first, *rest))


UPGRADED = tuple(map(_upgraded, (_NODE, _NGINX, _POSTGRES, _JAVA, _DJANGO)))
SERVICES = (_NODE, _NGINX, _REDIS, _POSTGRES, _JAVA, _DJANGO, _GCC, _GO, _LARGE, _MANY, *UPGRADED)
