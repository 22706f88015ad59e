"""The public MDX-Net models of Ultimate Vocal Remover (UVR), by the content of their files.

No description lies beside these files. UVR and the tools that follow it identify a model by the MD5 of the last 10,000
KiB of its file. Values: ``mdx_model_data/model_data_new.json`` of github.com/TRvlvr/application_data (November 2026);
names of files as far as public sources pair them with a digest. ``dim_t`` there is an exponent of 2, and the hop of all
models is 1024.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

HOP = 1024
"""Samples between frames, of all these models."""
_TAIL_BYTES = 10_000 * 1024


@dataclass(frozen=True)
class KnownModel:
    """One public model."""

    n_fft: int
    dim_f: int
    dim_t: int
    compensation: float
    stem: str  # what the model writes, as UVR calls it: Vocals, Instrumental, Bass, Drums, Other, Reverb, No Crowd
    name: str  # of the file, without its suffix; empty if unknown

    @property
    def karaoke(self) -> bool:
        """True if the model separates the lead voice alone, and leaves backing vocals with the instruments."""
        return "KARA" in self.name


def tail_md5(path: Path) -> str:
    """MD5 of the last 10,000 KiB of a file, or of the whole file if it is smaller."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        return hashlib.md5(file.read(), usedforsecurity=False).hexdigest()


def known_model(path: Path) -> KnownModel | None:
    """The model in a file, or None if it is not in the table."""
    return table().get(tail_md5(path))


@functools.cache
def table() -> dict[str, KnownModel]:
    """Digest -> model."""
    models = {}
    for line in _TABLE.strip().splitlines():
        digest, n_fft, dim_f, exponent, compensation, stem, name = line.split()
        sizes = (int(n_fft), int(dim_f), 2 ** int(exponent))
        models[digest] = KnownModel(*sizes, float(compensation), stem.replace("-", " "), name.strip("-"))
    return models


# MD5 of the file's end, n_fft, dim_f, exponent of dim_t, compensation, stem, file
_TABLE = """
b6bccda408a436db8500083ef3491e8b  7680 3072 8 1.02  Instrumental Kim_Inst
73492b58195c3b52d34590d5474452f6  7680 3072 8 1.043 Vocals       Kim_Vocal_1
970b3f9492014d18fefeedfe4773cb42  7680 3072 8 1.009 Vocals       Kim_Vocal_2
6703e39f36f18aa7855ee1047765621d 16384 2048 9 1.035 Bass         kuielab_a_bass
dc41ede5961d50f277eb846db17f5319  4096 2048 9 1.035 Drums        kuielab_a_drums
26d308f91f3423a67dc69a6d12a8793d  8192 2048 9 1.035 Other        kuielab_a_other
5f6483271e1efb9bfb59e4a3e6d4d098  6144 2048 9 1.035 Vocals       kuielab_a_vocals
c3b29bdce8c4fa17ec609e16220330ab 16384 2048 8 1.035 Bass         kuielab_b_bass
4910e7827f335048bdac11fa967772f9  4096 2048 7 1.035 Drums        kuielab_b_drums
65ab5919372a128e4167f5e01a8fda85  8192 2048 8 1.035 Other        kuielab_b_other
6b31de20e84392859a3d09d43f089515  6144 2048 8 1.035 Vocals       kuielab_b_vocals
cd5b2989ad863f116c855db1dfe24e39  6144 3072 9 1.035 Reverb       Reverb_HQ_By_FoxJoy
55657dd70583b0fedfba5f67df11d711  6144 3072 8 1.022 Instrumental UVR-MDX-NET-Inst_HQ_3
0f2a6bc5b49d87d64728ee40e23bceb1  5120 2560 8 1.019 Instrumental UVR-MDX-NET-Inst_HQ_4
cb790d0c913647ced70fc6b38f5bea1a  5120 2560 8 1.01  Instrumental UVR-MDX-NET-Inst_HQ_5
1c56ec0224f1d559c42fd6fd2a67b154  5120 2048 8 1.025 Instrumental UVR-MDX-NET-Inst_Main
77d07b2667ddf05b9e3175941b4454a0  7680 3072 8 1.021 Vocals       UVR-MDX-NET-Voc_FT
b02be2d198d4968a121030cf8950b492  5120 2560 8 1.02  No-Crowd     UVR-MDX-NET_Crowd_HQ_1
a3cd63058945e777505c01d2507daf37  6144 2048 8 1.03  Vocals       UVR_MDXNET_1_9703
d94058f8c7f1fae4164868ae8ae66b20  6144 2048 8 1.035 Vocals       UVR_MDXNET_2_9682
d7bff498db9324db933d913388cba6be  6144 2048 8 1.035 Vocals       UVR_MDXNET_3_9662
0ddfc0eb5792638ad5dc27850236c246  6144 2048 8 1.035 Vocals       UVR_MDXNET_9482
2f5501189a2f6db6349916fabe8c90de  6144 2048 8 1.035 Vocals       UVR_MDXNET_KARA
1d64a6d2c30f709b8c9b4ce1366d96ee  5120 2048 8 1.065 Instrumental UVR_MDXNET_KARA_2
203f2a3955221b64df85a41af87cf8f0  6144 3072 8 1.035 Instrumental -
291c2049608edb52648b96e27eb80e95  6144 3072 8 1.035 Instrumental -
2cdd429caac38f0194b133884160f2c6  7680 3072 8 1.045 Instrumental -
398580b6d5d973af3120df54cee6759d  7680 3072 8 1.75  Vocals       -
488b3e6f8bd3717d9d7c428476be2d75  7680 3072 8 1.035 Instrumental -
53c4baf4d12c3e6c3831bb8f5b532b93  7680 3072 8 1.043 Vocals       -
5d343409ef0df48c7d78cce9f0106781  7680 3072 8 1.075 Vocals       -
867595e9de46f6ab699008295df62798  7680 3072 8 1.03  Vocals       -
8a88db95c7fb5dbe6a095ff2ffb428b1  5120 2048 8 1.026 Instrumental -
94ff780b977d3ca07c7a343dab2e25dd  6144 3072 8 1.039 Instrumental -
b06327a00d5e5fbc7d96e1781bbdb596  6144 3072 8 1.035 Instrumental -
b33d9b3950b6cbf5fe90a32608924700  7680 3072 8 1.03  Vocals       -
b78da4afc6512f98e4756f5977f5c6b9  7680 3072 8 1.021 Instrumental -
cc63408db3d80b4d85b0287d1d7c9632  6144 3072 8 1.033 Instrumental -
ceed671467c1f64ebdfac8a2490d0d52  7680 3072 8 1.035 Instrumental -
d2a1376f310e4f7fa37fb9b5774eb701  7680 3072 8 1.035 Instrumental -
e5572e58abf111f80d8241d2e44e7fa4  7680 3072 8 1.028 Instrumental -
e7324c873b1f615c35c1967f912db92a  7680 3072 8 1.03  Vocals       -
ead8d05dab12ec571d67549b3aab03fc  6144 3072 8 1.035 Instrumental -
f2df6d6863d8f435436d8b561594ff49  7680 3072 8 1.035 Instrumental -
"""
