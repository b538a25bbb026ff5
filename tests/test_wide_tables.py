"""Tables of thousands of columns are answered, or refused, in time that grows with their cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from assay.errors import DataError
from assay.labels.readers.label_cells import HeadColumns
from assay.labels.readers.read import DataSettings, read_whole

IMAGES = 4
WIDE = 20_000

pytestmark = pytest.mark.timeout(60)  # a second or two; column by column it took minutes


def wide_table(folder: Path, cells: Callable[[int], list[str]], *, rows: int = IMAGES, width: int = WIDE) -> Path:
    """A table with a cell of `cells(row)` in each column c0, c1 ...; rows beyond the images name them again."""
    lines = [",".join(["image", *(f"c{k}" for k in range(width))])]
    for row in range(rows):
        image = folder / f"{row % IMAGES}.png"
        image.write_text(f"GIF89a {image.name}")  # reading hashes files and decodes none
        lines.append(",".join([image.name, *cells(row)]))
    (folder / "wide.csv").write_text("\n".join(lines))
    return folder / "wide.csv"


def one_head(width: int, **settings: str) -> dict[str, HeadColumns]:
    return {"tags": HeadColumns.model_validate({"columns": [f"c{k}" for k in range(width)], **settings})}


def flags(row: int, width: int = WIDE) -> list[str]:
    return [str(int((k + row) % IMAGES == 0)) for k in range(width)]


def test_columns_that_nobody_named_are_refused_beyond_a_thousand_heads(tmp_path: Path) -> None:
    table = wide_table(tmp_path, lambda row: ["ab"[row % 2]] * WIDE)
    with pytest.raises(DataError, match=r"20,000 label columns .* at most 1,000\. Name the label columns with `heads`"):
        read_whole(DataSettings(table=table), base=tmp_path)


def test_integers_of_too_many_heads_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("GIF89a 0")
    (tmp_path / "names.txt").write_text("0.png\n")
    (tmp_path / "labels.txt").write_text(" ".join(["1"] * WIDE))
    settings = DataSettings(rows=tmp_path / "names.txt", labels=tmp_path / "labels.txt")
    with pytest.raises(DataError, match="20,000 label columns"):
        read_whole(settings, base=tmp_path)


def test_a_class_a_column_is_read_at_any_width(tmp_path: Path) -> None:
    table = wide_table(tmp_path, flags)
    samples = read_whole(DataSettings(table=table, heads=one_head(WIDE)), base=tmp_path)
    assert samples.codes()[0].tolist() == [[int(cell) for cell in flags(row)] for row in range(IMAGES)]


def test_one_class_a_column_is_read_at_any_width(tmp_path: Path) -> None:
    table = wide_table(tmp_path, lambda row: ["1" if k == 300 + row else "0" for k in range(WIDE)])
    samples = read_whole(DataSettings(table=table, heads=one_head(WIDE, kind="multiclass")), base=tmp_path)
    assert samples.table["label:tags"].to_list() == [f"c{300 + row}" for row in range(IMAGES)]


def test_a_sum_of_many_ones_is_counted_right(tmp_path: Path) -> None:
    """More ones in a row than a byte can count."""
    table = wide_table(tmp_path, lambda row: ["1"] * 300, width=300)
    with pytest.raises(DataError, match="300 of the columns of 'tags' hold a 1"):
        read_whole(DataSettings(table=table, heads=one_head(300, kind="multiclass")), base=tmp_path)


def test_the_message_on_a_missing_column_does_not_list_all_others(tmp_path: Path) -> None:
    table = wide_table(tmp_path, flags)
    with pytest.raises(DataError, match=r"'c28' and 19,971 more\.") as raised:
        read_whole(DataSettings(table=table, image="images"), base=tmp_path)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_of_one_image_are_merged_at_any_width(tmp_path: Path, ending: str) -> None:
    """Each image has two rows, each blank where the other is filled."""

    def cells(row: int) -> list[str]:
        return [cell if (k < 9) == (row < IMAGES) else "" for k, cell in enumerate(flags(row))]

    table = wide_table(tmp_path, cells, rows=2 * IMAGES)
    if ending == "parquet":
        pl.read_csv(table).write_parquet(table := table.with_suffix(".parquet"))
    samples = read_whole(DataSettings(table=table, heads=one_head(WIDE)), base=tmp_path)
    assert samples.codes()[0].tolist() == [[int(cell) for cell in flags(row)] for row in range(IMAGES)]
