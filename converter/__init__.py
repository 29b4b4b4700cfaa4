"""The converter: an ordinary image in, one that starts before it is downloaded out.

Read it from top to bottom:

    image       manifest and config in, manifest out; which layers must be converted
    layer       one layer: the pipeline from its compressed blob to the new blob and its TOC
    blob        the new blob: frames in order, appendix, TOC, seek table
    unpack      compressed pieces -> plain pieces, digests checked
    stream      plain pieces -> what the tar walk reads, cut into chunks
    cuts        where to cut
    appendix    what a sparse file's data needs where its tar form cannot be mapped
    check       the proof that a converted image is right

Needs no root, no FUSE, no engine.
"""

from converter.check import CheckReport, check_image
from converter.cuts import CutRules
from converter.image import ConvertReport, LayerReport, convert_image
from converter.layer import Settings

__all__ = [
    "CheckReport",
    "ConvertReport",
    "CutRules",
    "LayerReport",
    "Settings",
    "check_image",
    "convert_image",
]
