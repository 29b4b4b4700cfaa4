"""What each image holds. A recipe is data: changing one makes the image anew, and nothing else does.

The scripts run as root in a chroot of what the layers below hold, by `/bin/sh -eux`. apt has the
machine's mirror, and `$SECURITY` names the one with security updates; /tmp/pip is pip, for layers that
shall not hold one. Package lists and downloads, /tmp and /run never become part of a layer.
"""

from collections.abc import Mapping

from benchmarks.images.recipe import INSTALL, PATH, Busybox, Debootstrap, Recipe
from benchmarks.images.services import SERVICES

# A Python program as people ship it: it starts by importing numpy. The second script removes a
# package of each layer below it, replaces files, makes a directory opaque and puts a symbolic
# link where a directory was; iputils-ping carries a file capability.
_DEMO = Recipe(
    name="demo",
    base=Debootstrap("bookworm"),
    scripts=(
        f"""
{INSTALL} python3 iputils-ping less
useradd --uid 1000 --create-home app
mkdir /srv/app
echo 'import sys; print("ready", sys.version)' >/srv/app/ready.py
""",
        f"""
{INSTALL} python3-numpy
apt-get purge -yq --auto-remove less tzdata
rm -rf /usr/share/doc
mkdir /usr/share/doc
echo 'Documentation was removed to save space.' >/usr/share/doc/README
rmdir /media
ln -s mnt /media
echo 'lazyfs demo' >/etc/issue
echo 'import numpy; print("ready", numpy.__version__, numpy.arange(10).sum(), flush=True)' >/srv/app/ready.py
chown -R app:app /srv/app
""",
    ),
    config={
        "Env": [PATH, "LANG=C.UTF-8", "PYTHONUNBUFFERED=1"],
        "User": "app",
        "WorkingDir": "/srv/app",
        "Entrypoint": ["python3"],
        "Cmd": ["ready.py"],
        "Labels": {"org.opencontainers.image.title": "lazyfs demo", "org.opencontainers.image.version": "1"},
    },
)

# Seconds to make and without a network: what layers can say of each other, in little.
_SMALL = Recipe(
    name="small",
    base=Busybox(),
    scripts=(
        """
mkdir -p /srv/app/gone/deep /srv/app/opaque/old /srv/app/turns/file /srv/app/kept /srv/app/many
echo one >/srv/app/kept/replaced
echo two >/srv/app/kept/deleted
echo three >/srv/app/kept/chmodded
ln /srv/app/kept/chmodded /srv/app/kept/hardlink
ln -s replaced /srv/app/kept/link
ln -s /nowhere/at/all /srv/app/kept/dangling
echo hidden >/srv/app/gone/deep/file
echo hidden >/srv/app/opaque/old/file
echo hidden >/srv/app/opaque/replaced
echo file >/srv/app/turns/dir
mkdir /srv/app/turns/link
echo hidden >/srv/app/turns/link/below
mkfifo /srv/app/fifo
mknod /srv/app/null c 1 3
mknod /srv/app/loop b 7 200
: >/srv/app/empty
echo odd >"/srv/app/a name with  spaces,commas:colons"
echo odd >"/srv/app/$(printf 'not utf-8 \\377\\376')"
echo odd >"/srv/app/$(printf 'two\\nlines')"
mkdir -p "/srv/app/$(printf 'd%0100d/d%0100d/d%0100d' 1 2 3)"
echo long >"/srv/app/$(printf 'd%0100d/d%0100d/d%0100d/f%0100d' 1 2 3 4)"
dd if=/dev/urandom of=/srv/app/random bs=64k count=48
head -c 3000000 /dev/zero >/srv/app/zeros
touch -h -d '1955-11-12 22:04:00' /srv/app/kept/link /srv/app/kept/dangling
touch -d '@0' /srv/app/empty
chown 100000:4000000 /srv/app/empty
chmod 6755 /srv/app/kept/replaced
for i in $(seq 600); do echo "$i" >/srv/app/many/"$i"; done
""",
        """
rm -r /srv/app/gone /srv/app/kept/deleted /srv/app/many/7
rm -r /srv/app/opaque && mkdir /srv/app/opaque
echo new >/srv/app/opaque/replaced
rmdir /srv/app/turns/file && echo now a file >/srv/app/turns/file
rm /srv/app/turns/dir && mkdir /srv/app/turns/dir && echo new >/srv/app/turns/dir/below
rm -r /srv/app/turns/link && ln -s dir /srv/app/turns/link
echo replaced >/srv/app/kept/replaced
chmod 640 /srv/app/kept/chmodded
ln /srv/app/random /srv/app/random-again
cat >/srv/app/entry.sh <<'END'
#!/bin/sh
echo ready "$@"
END
chmod 755 /srv/app/entry.sh
""",
    ),
    config={
        "Env": [PATH, "GREETING=hello"],
        "WorkingDir": "/srv/app",
        "Entrypoint": ["/srv/app/entry.sh"],
        "Cmd": ["small"],
        "Labels": {"org.opencontainers.image.title": "lazyfs small"},
    },
)

# What people who compute ship: wheels, with large shared libraries and very many small files.
_SCIENCE = Recipe(
    name="science",
    base=Debootstrap("bookworm"),
    scripts=(
        f"{INSTALL} python3",
        """
PYTHONPATH=/tmp/pip python3 -m pip install --target=/opt/science --no-deps --only-binary=:all: \
    numpy==2.2.6 scipy==1.15.3 pandas==2.2.3 scikit-learn==1.6.1 python-dateutil==2.9.0.post0 pytz==2025.2 \\
    tzdata==2025.2 six==1.17.0 joblib==1.5.1 threadpoolctl==3.6.0
mkdir -p /srv/app
echo 'import numpy; print("ready", numpy.__version__, flush=True)' >/srv/app/ready.py
""",
    ),
    config={
        "Env": [PATH, "LANG=C.UTF-8", "PYTHONPATH=/opt/science"],
        "Entrypoint": ["python3"],
        "Cmd": ["/srv/app/ready.py"],
    },
)

# The same with what draws and what infers: about 890 MB unpacked, of which an import of all of it reads a tenth.
_STACK = Recipe(
    name="stack",
    base=Debootstrap("bookworm"),
    scripts=(
        *_SCIENCE.scripts,
        """
PYTHONPATH=/tmp/pip python3 -m pip install --target=/opt/science --no-deps --only-binary=:all: \\
    matplotlib==3.10.3 contourpy==1.3.2 cycler==0.12.1 fonttools==4.58.1 kiwisolver==1.4.8 packaging==25.0 \\
    pillow==11.2.1 pyparsing==3.2.3 onnxruntime==1.22.0 coloredlogs==15.0.1 humanfriendly==10.0 flatbuffers==25.2.10 \\
    protobuf==6.31.1 sympy==1.14.0 mpmath==1.3.0
cat >/srv/app/ready.py <<'END'
import matplotlib.pyplot
import onnxruntime
import pandas
import scipy.optimize
import scipy.stats
import sklearn.cluster
import sklearn.ensemble
import sklearn.linear_model

print("ready", pandas.__version__, flush=True)
END
""",
    ),
    config={
        **_SCIENCE.config,
        "Env": [*_SCIENCE.config["Env"], "MPLBACKEND=Agg", "MPLCONFIGDIR=/tmp/matplotlib"],
    },
)

# One root file system before and after a security update, as a nightly build of a base image makes them. Of the
# packages that have had updates, the first that has one newer than the release takes part.
_OUTDATED = Recipe(
    name="outdated", base=Debootstrap("bookworm"), scripts=(f"{INSTALL} openssl",), config={}, flat=True
)
_UPGRADED = Recipe(
    name="upgraded",
    base=Debootstrap("bookworm"),
    scripts=(
        *_OUTDATED.scripts,
        """
[ -n "$SECURITY" ]
echo "deb $SECURITY bookworm-security main" >>/etc/apt/sources.list
apt-get update -q
for package in libssl3 perl-base liblzma5 tzdata none; do
    before=$(dpkg-query -W "$package")
    apt-get install -yq --only-upgrade --no-install-recommends "$package"
    [ "$before" = "$(dpkg-query -W "$package")" ] || break
done
""",
    ),
    config={},
    flat=True,
)

# One package on two bases.
_PYTHON = f"{INSTALL} python3"
_ON_LITTLE = Recipe(name="python-on-little", base=Debootstrap("bookworm"), scripts=(_PYTHON,), config={})
_ON_MUCH = Recipe(
    name="python-on-much",
    base=Debootstrap("bookworm"),
    scripts=(f"{INSTALL} git nginx-light ca-certificates", _PYTHON),
    config={},
)

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (_DEMO, _SMALL, _SCIENCE, _STACK, _OUTDATED, _UPGRADED, _ON_LITTLE, _ON_MUCH, *SERVICES)
}
