"""`modernbert export`: export a model folder to ONNX."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modernbert.export.onnx_folder import Report, export_folder
from modernbert.extras import require
from modernbert.hub_download import find_folder

__all__ = ["ExportConfig", "run"]


@dataclass(frozen=True)
class ExportConfig:
    """Settings of an export; `texts` are compared besides random documents."""

    model: str
    out: Path
    int8: bool = False
    texts: Sequence[str] = ()


def run(config: ExportConfig) -> Report:
    """Write the folder and print how much its graphs agree with the model.

    Raises: InputError for a model that cannot be exported, or an `out` that exists. CheckFailed if a graph differs too
        much.
    """
    require("export", "onnx", "onnxruntime")
    report = export_folder(find_folder(config.model), config.out, int8=config.int8, texts=config.texts)
    for name, size in report.sizes.items():
        print(f"{config.out / name}: {size / 1e6:,.1f} MB")
    if report.num_cut:
        print(f"{report.num_cut} texts were longer than the model's limit, and cut")
    for name, found in report.agreements.items():
        print(
            f"{name}: {report.num_documents} documents, largest difference {found.difference:.1e} of the largest value,"
            f" least cosine {found.cosine:.7f}"
        )
    if report.int8_agreement is not None:
        kept = f", in float32 {', '.join(report.kept)}" if report.kept else ""
        print(f"int8: least cosine {report.int8_agreement.cosine:.5f}{kept}")
    return report
