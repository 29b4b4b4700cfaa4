"""The converter: an ordinary image in, one that starts before it is downloaded out.

Read it from top to bottom:

    image       manifest, config or index in, new manifests out; which layers must be converted
    records     what an earlier run has converted already
    layer       one layer: the pipeline from its compressed blob to the new blob and its TOC
    unpack      compressed pieces -> plain pieces, digests and limits checked
    stream      plain pieces -> what the tar walk reads, cut into chunks
    cuts        where to cut
    data        what of the stream is data of files
    appendix    what a sparse file's data needs where its tar form cannot be mapped
    memory      large arrays given back to the system
    blob        the new blob: frames in order, appendix, TOC, seek table
    chosen      which images of an index are meant
    check       the proof that a converted image is right
    copy        images from store to store as they are
    difference  what a node with one image must fetch for another

Needs no root, no FUSE, no engine.
"""

from converter.check import CheckReport, check_against, check_image
from converter.copy import copy_attached, copy_tree
from converter.cuts import CutRules
from converter.difference import Difference, compare
from converter.image import ConvertReport, convert_image
from converter.layer import Settings
from converter.progress import LayerProof, LayerReport, Progress, Silent
from converter.unpack import Limits

__all__ = [
    "CheckReport",
    "ConvertReport",
    "CutRules",
    "Difference",
    "LayerProof",
    "LayerReport",
    "Limits",
    "Progress",
    "Settings",
    "Silent",
    "check_against",
    "check_image",
    "compare",
    "convert_image",
    "copy_attached",
    "copy_tree",
]
