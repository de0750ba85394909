"""Label files of two programs: workbooks of Excel (.xlsx) and arrays of MATLAB (.mat)."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import numpy as np

from qa_hooks._base.libraries import import_library

LOG = logging.getLogger("qa_hooks")
LARGEST = 2**28  # bytes


def workbook_rows(path: Path) -> list[list[str]]:
    """The filled rows of the first filled sheet, as text; trailing empty columns are left out.

    Raises:
        ImportError: openpyxl is not installed.
        ValueError: no workbook.
    """
    openpyxl = import_library("openpyxl", needed_by=str(path), install="pip install 'qa-hooks[ratings]'")
    try:
        with zipfile.ZipFile(path) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > LARGEST:
            raise ValueError(f"it unpacks to {unpacked / 2**20:.0f} MB, and ratings are smaller")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
        book.close()
    except Exception as error:  # a broken zip, broken XML, another program's file: openpyxl raises what its parts raise
        raise ValueError(f"{path} is no workbook of Excel: {type(error).__name__}: {error}") from error
    filled = {title: rows for title, rows in sheets.items() if any(cell is not None for row in rows for cell in row)}
    if not filled:
        return []
    first, *others = filled
    if others:
        LOG.warning("%s: the sheet %s is read, and not %s", path, first, ", ".join(others))
    rows = [["" if cell is None else str(cell) for cell in row] for row in filled[first]]
    rows = [row for row in rows if any(row)]
    width = max(place + 1 for row in rows for place, cell in enumerate(row) if cell)
    return [row[:width] for row in rows]


def matlab_column(path: Path) -> list[float]:
    """The one column of numbers that a .mat file holds.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        content = loadmat(path)
    except Exception as error:  # of version 7.3, which is HDF5, or no .mat at all
        raise ValueError(f"{path} is no .mat file of version 7 or older: {type(error).__name__}: {error}") from error
    arrays = {name: np.asarray(value) for name, value in content.items() if not name.startswith("__")}
    columns = {name: array for name, array in arrays.items() if array.dtype.kind in "fiu" and array.size == max(
        array.shape, default=0
    )}  # fmt: skip
    if len(columns) != 1:
        told = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise ValueError(f"{path} must hold one column of numbers, it holds {told}")
    values = next(iter(columns.values())).astype(np.float64).reshape(-1)
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds {int((~np.isfinite(values)).sum())} values that are not finite")
    return [float(value) for value in values]
