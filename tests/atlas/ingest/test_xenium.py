from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from teramind.atlas.report import CONTROL, LOW_QUALITY, OUTSIDE
from teramind.atlas.store import Atlas
from teramind.atlas.xenium import read_xenium
from teramind.errors import InputError

SIZE = 0.2125
HEIGHT, WIDTH = 301, 203  # px of the bundle's images
ATLAS = (593, 400)  # 301 and 203 px of 0.2125 um, in px of 0.108 um, rounded up
ROWS = 2501
STAINS = ("DAPI", "ATP1A1/CD45/E-Cadherin", "18S")
CONTROLS = ("NegControlProbe_00042", "UnassignedCodeword_0003", "BLANK_0069", "antisense_ACTB")


def table(folders, **changes) -> dict[str, np.ndarray]:
    """Columns of transcripts.parquet; a tenth of the names are controls."""
    rng = np.random.default_rng(4)
    names = rng.choice(folders.genes, ROWS)
    controls = rng.random(ROWS) < 0.1
    names = np.where(controls, rng.choice(CONTROLS, ROWS), names)
    columns = {
        "transcript_id": np.arange(ROWS, dtype=np.uint64),
        "feature_name": names.astype(str).astype(object),
        "x_location": rng.uniform(-3, WIDTH * SIZE + 3, ROWS).astype(np.float32),
        "y_location": rng.uniform(-3, HEIGHT * SIZE + 3, ROWS).astype(np.float32),
        "z_location": rng.uniform(0, 20, ROWS).astype(np.float32),
        "qv": rng.choice(np.array([0, 5, 19.99, 20, 31, 40], dtype=np.float32), ROWS),
    }
    return columns | changes


def images() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return {
        stain: (2000 + 900 * np.sin(x / (11 + 7 * index)) + 700 * np.cos(y / 19)).astype(np.uint16)
        for index, stain in enumerate(STAINS)
    }


def is_control(columns) -> np.ndarray:
    return np.isin(columns["feature_name"].astype(str), CONTROLS)


def expected_counts(folders, columns, genes, keep) -> np.ndarray:
    x, y = (columns[name].astype(np.float64) / 0.108 for name in ("x_location", "y_location"))
    return folders.counted(x[keep], y[keep], columns["feature_name"][keep].astype(str), genes, ATLAS)


def whole(atlas) -> np.ndarray:
    return atlas.gene_window(0, 1, 0, 608, 0, 400)[:, 0]


@pytest.mark.parametrize(
    ("layout", "compression", "stains"),
    [
        ("mip", "zlib", ["DAPI"]),
        ("stack", "zlib", ["DAPI"]),
        ("numbered", "zlib", ["18S", "DAPI"]),
        ("numbered", "jpeg2000", ["DAPI", "18S"]),
        ("named", "zlib", ["DAPI", "ATP1A1/CD45/E-Cadherin"]),
    ],
)
def test_every_layout_gives_counts_and_images_at_the_pixel_size_asked_for(
    tmp_path, folders, layout, compression, stains
):
    columns, pixels = table(folders), images()
    bundle = folders.xenium(tmp_path / "bundle", columns, pixels, layout=layout, compression=compression)
    report = read_xenium([bundle], tmp_path / "a.zarr", stains=stains, scale=dict.fromkeys(stains, (0, 4000)))
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.shape == (1, *ATLAS)
    assert atlas.pixel_size == 0.108
    assert atlas.stains == stains
    assert atlas.genes == sorted(folders.genes)

    good = columns["qv"] >= 20
    kept = good & ~is_control(columns)
    expected = expected_counts(folders, columns, atlas.genes, kept)
    np.testing.assert_array_equal(whole(atlas), expected)
    assert report.dropped[LOW_QUALITY].tolist() == [np.count_nonzero(~good)]
    assert report.dropped[CONTROL].tolist() == [np.count_nonzero(good & is_control(columns))]
    assert report.dropped[OUTSIDE].tolist() == [kept.sum() - expected.sum()]
    assert report.read.tolist() == [ROWS]

    shown = atlas.image_window(0, 1, 0, ATLAS[0], 0, ATLAS[1])[:, 0]
    y, x = np.mgrid[: ATLAS[0], : ATLAS[1]] + 0.5
    y, x = y * 0.108 / SIZE, x * 0.108 / SIZE
    inner = (y > 0.5) & (y < HEIGHT - 0.5) & (x > 0.5) & (x < WIDTH - 0.5)
    for channel, stain in enumerate(stains):
        index = STAINS.index(stain)
        truth = (2000 + 900 * np.sin(x / (11 + 7 * index)) + 700 * np.cos(y / 19)) * 255 / 4000
        # one grey level for rounding, 0.1 for the curvature between two pixels, 0.1 for truncated intensities
        np.testing.assert_allclose(shown[channel][inner], truth[inner], atol=0.8)


@pytest.mark.parametrize("column", ["is_gene", "codeword_category"])
def test_the_tables_own_word_on_what_is_a_gene_is_taken(tmp_path, folders, column):
    columns = table(folders)
    spared = np.random.default_rng(1).random(ROWS) < 0.2  # genes by name that the table calls none
    verdict = ~(is_control(columns) | spared)
    if column == "is_gene":
        columns["is_gene"] = verdict
    else:
        columns["codeword_category"] = np.where(verdict, "custom_gene", "negative_control_probe").astype(object)
    bundle = folders.xenium(tmp_path / "bundle", columns, images(), layout="mip")
    report = read_xenium([bundle], tmp_path / "a.zarr", stains=["DAPI"])
    atlas = Atlas.open(tmp_path / "a.zarr")
    good = columns["qv"] >= 20
    np.testing.assert_array_equal(whole(atlas), expected_counts(folders, columns, atlas.genes, good & verdict))
    assert report.dropped[CONTROL].tolist() == [np.count_nonzero(good & ~verdict)]


def test_names_stored_as_bytes_are_names(tmp_path, folders):
    columns = table(folders)
    stored = columns | {"feature_name": np.array([name.encode() for name in columns["feature_name"]], dtype=object)}
    bundle = folders.xenium(tmp_path / "bundle", stored, images(), layout="mip")
    read_xenium([bundle], tmp_path / "a.zarr", stains=["DAPI"])
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.genes == sorted(folders.genes)
    keep = (columns["qv"] >= 20) & ~is_control(columns)
    np.testing.assert_array_equal(whole(atlas), expected_counts(folders, columns, atlas.genes, keep))


def test_quality_and_pixel_size_can_be_chosen(tmp_path, folders):
    columns, pixels = table(folders), images()
    bundle = folders.xenium(tmp_path / "bundle", columns, pixels, layout="named")
    output = tmp_path / "a.zarr"
    report = read_xenium([bundle], output, stains=["18S"], min_qv=0, pixel_size=SIZE, scale={"18S": (0, 255)})
    atlas = Atlas.open(output)
    assert not report.dropped[LOW_QUALITY].any()
    assert atlas.shape == (1, HEIGHT, WIDTH)
    np.testing.assert_array_equal(  # the images' own pixels, not resampled
        atlas.image_window(0, 1, 0, HEIGHT, 0, WIDTH)[0, 0], np.minimum(pixels["18S"], 255)
    )


def test_rows_without_quality_or_position_are_counted_and_not_kept(tmp_path, folders):
    import pyarrow as pa

    columns = table(folders)
    qv, x = columns["qv"].astype(object), columns["x_location"].astype(object)
    qv[:100], x[50:150] = None, None
    stored = columns | {"qv": pa.array(qv, pa.float32()), "x_location": pa.array(x, pa.float32())}
    bundle = folders.xenium(tmp_path / "bundle", stored, images(), layout="mip")
    report = read_xenium([bundle], tmp_path / "a.zarr", stains=["DAPI"])
    keep = (columns["qv"] >= 20) & ~is_control(columns) & (np.arange(ROWS) >= 150)
    expected = expected_counts(folders, columns, sorted(folders.genes), keep)
    np.testing.assert_array_equal(whole(Atlas.open(tmp_path / "a.zarr")), expected)
    assert report.dropped[LOW_QUALITY].tolist() == [100 + np.count_nonzero(columns["qv"][100:] < 20)]
    assert report.kept.tolist() == [expected.sum()]


def test_without_the_codec_the_sentence_says_what_to_install(tmp_path, folders):
    bundle = folders.xenium(tmp_path / "bundle", table(folders), images(), layout="numbered", compression="jpeg2000")
    script = """
        import sys

        class Without:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "imagecodecs":
                    raise ImportError(name)

        sys.meta_path.insert(0, Without())
        from teramind.cli import main

        sys.exit(main(sys.argv[1:]))
    """
    words = ["ingest", "xenium", str(bundle), "--stains", "DAPI", "--output", str(tmp_path / "a.zarr")]
    command = [sys.executable, "-c", textwrap.dedent(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'teramind[xenium]'" in done.stderr
    assert not (tmp_path / "a.zarr").exists()


def break_column(bundle, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: columns[name] for name in columns if name != "qv"}), bundle / "transcripts.parquet")


def break_parquet(bundle, _columns):
    content = (bundle / "transcripts.parquet").read_bytes()
    (bundle / "transcripts.parquet").write_bytes(content[: len(content) // 2])


def break_experiment(bundle, _columns):
    (bundle / "experiment.xenium").write_text(json.dumps({"run_name": "no size"}))


def break_images(bundle, _columns):
    for path in (bundle / "morphology_focus").iterdir():
        path.unlink()


def break_one_image(bundle, _columns):
    path = next((bundle / "morphology_focus").glob("*0001*"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def break_stain(bundle, _columns):
    next((bundle / "morphology_focus").glob("*0002*")).unlink()


FAULTS = {
    break_column: "no column qv; its columns are",
    break_parquet: r"transcripts\.parquet is truncated",
    break_experiment: r"experiment\.xenium does not give the images' pixel_size",
    break_images: "no morphology image",
    break_one_image: r"0001.*is (truncated|not a whole TIFF)",
    break_stain: "no image of the stain 18S; it has DAPI, ATP1A1/CD45/E-Cadherin",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_sentence_and_leaves_nothing_behind(tmp_path, folders, fault):
    columns = table(folders)
    bundle = folders.xenium(tmp_path / "bundle", columns, images(), layout="named")
    fault(bundle, columns)
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(InputError, match=FAULTS[fault]) as caught:
        read_xenium([bundle], output / "a.zarr", stains=["DAPI", "ATP1A1/CD45/E-Cadherin", "18S"])
    assert "\n" not in str(caught.value)
    assert not list(output.iterdir())
