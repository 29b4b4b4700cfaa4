"""An image of one file, made beforehand: to make it here would take a command longer than all else it does.

Its bytes are those of `lazyfs.formats.bootstrap`; a test makes them anew and compares.
"""

import base64
import zlib

NAME = "probe"
CONTENT = b"lazyfs" * 1000
XATTRS = {
    "user.lazyfs": b"probe",
    "security.capability": bytes.fromhex("0100000200040000000000000000000000000000"),
}


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


BOOTSTRAP = _unpack(
    "c-muN7zLwX6pU2x=;7A~Fg7QH0Rs~jHEbl9#{ni8fo2g0auO?3iwwwjzX;sUQ9ur01md@j3=BF@J}XoV8(<m@u3;Ged<;t("
    "85j!0A$)E;@ytlTEG{+?hUCP8#H7re%#un*kU=aMWeFoIFwa+2rWF?y<tL?%M!*0ASkbEjj4T*i707mgvekjHuBWFr8d<{>"
    "002237D5"
)
"""Metadata, for a kernel that mounts files."""
DEVICE = _unpack(
    "c-rmRy$ZrG6hPstIQ1#|1TnRLQ$cX4;2=0TMvWi{O4>r})2kJP4o*@PJZJbCN@<30r>L<SPnV|7t=U;8y`&$#dg>qypX>I0"
    "peMmZ{8~OxRg}ivwwM1bjQrIspD)&`Hf8BlRamEv=F;qo?Cee(>&0pJi^6UzcPJaRHD|Lq9B<2PATpFu_s^ct@7JDj&wJd5"
    "I*Fne^B;t9qPz32Q>`QMHS^zlk5NZNL_|bHL_|bHM8tRG#)*iCh={(~6}@a;A^"
)
"""The data to go with it: the layer's tar stream."""
JOINED = _unpack(
    "c-rmRF>1nK7=Ym~)@G2>so(`FE|NQVlvpeXLPK@YN$=vp)ZNkDh;b3oK~QX;2lD1m2pN*;OCo^(YQ5SnkL$OXMeWQrsmBBW"
    "0DnSKZkujIr#gPA&Ye^9xBvhE;7RBI_gKs$iss?Ceqqi}uH37Ue#BQ^<h{XgFrFm)8`V#*Nt4$Y=F`ddsQCTq^}PT9006jy"
    "S+)NxhxOySwf_Q84g2kKk!6`-9RL6Tp4j1EysE0Is;a80s;a80-co-Y0Dwo^0gD7Wum"
)
"""Metadata and data in one, for a loop device."""
