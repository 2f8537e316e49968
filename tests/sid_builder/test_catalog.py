"""The catalogue from a stream of rows, over more than one chunk, and a choice of its items."""

import numpy as np
import pyarrow as pa

from sid_builder.catalog import ROWS_A_CHUNK, SCHEMA, Catalog


def test_stream_over_chunks_and_selection(tmp_path):
    size = 2 * ROWS_A_CHUNK + 3
    rows = (
        (
            f"line {n}",
            {"item_id": n, "title": f"title {n}", "price": n} | ({"colour": n % 7} if n % 2 else {}),
        )
        for n in range(size)
    )
    catalog = Catalog.from_stream(rows, further=("colour",))
    assert catalog.num_items == size and catalog.item_ids == [str(n) for n in range(size)]
    assert catalog.table.schema.names == [*SCHEMA.names, "colour"]
    last = ROWS_A_CHUNK + 1
    assert catalog.row(last)["title"] == f"title {last}" and catalog.item_index(str(last)) == last
    assert catalog.row(last)["colour"] == str(last % 7) and catalog.row(last - 1)["colour"] is None

    chosen = np.array([1, ROWS_A_CHUNK, size - 1, -1])
    part = catalog.select(chosen, pa.array(["1", str(ROWS_A_CHUNK), str(size - 1), "new"]))
    assert part.titles == ["title 1", f"title {ROWS_A_CHUNK}", f"title {size - 1}", ""]
    assert part.row(3) == {
        "item_id": "new",
        "title": "",
        "description": "",
        "brand": "",
        "categories": [],
        "price": None,
        "domain": "",
        "colour": None,
    }
    part.save(tmp_path / "items.parquet")
    assert Catalog.load(tmp_path / "items.parquet").table.equals(part.table)
