"""`modernbert export`: export a model folder to ONNX."""

from modernbert.checkpoints.folder import ModelFolder
from modernbert.errors import counted
from modernbert.export.export_options import ExportConfig
from modernbert.export.onnx_folder import Report, export_folder
from modernbert.extras import require
from modernbert.inference.text_inputs import gather_texts

__all__ = ["ExportConfig", "run"]


def run(config: ExportConfig) -> Report:
    """Write the folder and print how much its graphs agree with the model.

    Raises: InputError for a model that cannot be exported, or an `output` that exists. CheckFailed if a graph differs
        too much.
    """
    require("export", "onnx", "onnxruntime")
    texts = gather_texts([], config.input) if config.input else ()
    report = export_folder(
        ModelFolder.open(config.model, config.revision), config.output, int8=config.int8, texts=texts
    )
    for name, size in report.sizes.items():
        print(f"{config.output / name}: {size / 1e6:,.1f} MB")
    if report.num_truncated:
        print(f"{counted(report.num_truncated, 'text was', 'texts were')} longer than the model's limit, and cut")
    for name, found in report.agreements.items():
        print(
            f"{name}: {counted(report.num_documents, 'document')}, largest difference {found.difference:.1e} of the "
            f"largest value, least cosine {found.cosine:.7f}"
        )
    if report.int8_agreement is not None:
        kept = f", in float32 {', '.join(report.kept)}" if report.kept else ""
        print(f"int8: least cosine {report.int8_agreement.cosine:.5f}{kept}")
    return report
