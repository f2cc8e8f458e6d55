"""Pages about what is in a folder."""

from pathlib import Path

from selfsight.errors import UserError
from selfsight.grid.stored import is_grid, read_stored
from selfsight.report.page.grid import write_grid_page
from selfsight.report.page.run import report
from selfsight.train.folder import CONFIG


def write_report(
    where: str | Path, output: str | Path | None = None, overrides: list[str] | None = None
) -> Path:
    """Write the page of a run or of a grid: one HTML file that makes no request.

    Args:
        where: the folder of a run or of a grid, or the encoder.safetensors in a run.
        output: the file (default: report.html in the folder). An earlier report is replaced.
        overrides: 'key=value' of the images of a run: data.path=... if they were moved.
    Returns: the file.
    Raises: UserError if `where` is neither, or if `output` is another file.
    """
    where = Path(where)
    if not where.is_dir() or (where / CONFIG).is_file():
        return report(where, output, overrides)
    if not is_grid(where):
        raise UserError(
            f"'{where}': is neither a run (no {CONFIG} in it) nor a grid (no table.json and no "
            f"cells in it); give the folder of `selfsight pretrain` or of `selfsight bench`"
        )
    if overrides:
        raise UserError(
            f"{overrides[0]}: keys say where the images of a run are, and the page of a grid shows "
            f"none; leave it out"
        )
    return write_grid_page(read_stored(where), None if output is None else Path(output))
