"""Sources of labelled images, each one way to load three splits."""

from lit_xai.data.augment import CropFlip
from lit_xai.data.base import ImageData, ImageSet, Splits, collate
from lit_xai.data.decode import decode, fit
from lit_xai.data.digits import EmbeddedDigits, SklearnDigits
from lit_xai.data.folders import FileSet, ImageFolders
from lit_xai.data.npz import NpzPack
from lit_xai.data.official import Cifar10, FashionMnist, Mnist
from lit_xai.data.order import stratified

__all__ = [
    "Cifar10",
    "CropFlip",
    "EmbeddedDigits",
    "FashionMnist",
    "FileSet",
    "ImageData",
    "ImageFolders",
    "ImageSet",
    "Mnist",
    "NpzPack",
    "SklearnDigits",
    "Splits",
    "collate",
    "decode",
    "fit",
    "stratified",
]
