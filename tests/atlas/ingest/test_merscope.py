from __future__ import annotations

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.ndimage

from teramind.atlas.affine import Affine, read_affine
from teramind.atlas.frame import Extent
from teramind.atlas.merscope import read_merscope
from teramind.atlas.report import CONTROL, OUTSIDE, UNKNOWN_GENE
from teramind.atlas.store import Atlas
from teramind.errors import InputError

HEIGHT, WIDTH = 301, 203
SCALE = 9.25
TRANSFORM = np.array([[SCALE, 0, -40.5], [0, SCALE, 30.25], [0, 0, 1]])
PIXEL_SIZE = 1 / SCALE


def whole(atlas: Atlas, index: int) -> np.ndarray:
    """(genes, bin rows, bin columns) counts of a slice."""
    _, height, width = atlas.shape
    return atlas.gene_window(index, index + 1, 0, -(-height // 16) * 16, 0, -(-width // 16) * 16)[:, 0]


def picture(atlas: Atlas, index: int) -> np.ndarray:
    """(stains, H, W) of a slice."""
    return atlas.image_window(index, index + 1, 0, atlas.shape[1], 0, atlas.shape[2])[:, 0]


def px(points, transform=TRANSFORM) -> tuple[np.ndarray, np.ndarray]:
    return Affine(transform).apply(points.x, points.y)


def some_points(folders, seed=0, count=3000):
    """Points of which about a fifth lie outside the mosaic."""
    points = folders.points(seed, count, WIDTH / SCALE, HEIGHT / SCALE)
    x, y = Affine(TRANSFORM).inverse().apply(points.x * SCALE, points.y * SCALE)
    return type(points)(x, y, points.plane, points.gene)


def mosaics(planes=(0, 1, 2), stains=("DAPI", "PolyT"), seed=5) -> dict[tuple[str, int], np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        (stain, plane): rng.integers(1, 4000, (HEIGHT, WIDTH)).astype(np.uint16) for stain in stains for plane in planes
    }


@pytest.fixture
def one(tmp_path, folders):
    """A folder, its points and its images."""
    points, images = some_points(folders), mosaics()
    return folders.merscope(tmp_path / "region_0", points, images, TRANSFORM), points, images


def test_the_real_sample_lies_under_its_transcripts(tmp_path, liver):
    report = read_merscope([liver], tmp_path / "a.zarr", stains=["DAPI", "Cellbound2"], z_planes=True)
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.shape == (7, 512, 512)
    assert len(atlas.genes) == 259
    assert report.read.sum() == 5936
    assert report.dropped[CONTROL].sum() + report.dropped[OUTSIDE].sum() + report.kept.sum() == 5936
    # 44 % of all rows; a few of them are controls and counted as such
    assert report.dropped[OUTSIDE].sum() / 5936 == pytest.approx(0.44, abs=0.005)
    density = sum(whole(atlas, index).sum(axis=0) for index in range(7))
    assert density.sum() == report.kept.sum()

    rows = [line.split(",") for line in (liver / "detected_transcripts.csv").read_text().splitlines()[1:]]
    transform = read_affine(liver / "images" / "micron_to_mosaic_pixel_transform.csv")
    x, y = transform.apply(*(np.array([float(row[column]) for row in rows]) for column in (2, 3)))
    inside = (x >= 0) & (x < 512) & (y >= 0) & (y < 512)
    for stain, least in ((0, 0.4), (1, 0.6)):
        mean = np.mean([picture(atlas, index)[stain] for index in range(7)], axis=0)
        blurred = scipy.ndimage.gaussian_filter(mean, 8)
        score = (blurred - blurred.mean()) / blurred.std()
        assert score[y[inside].astype(int), x[inside].astype(int)].mean() >= least
        # and by the counts of the atlas itself, at bin resolution
        of_bins = score.reshape(32, 16, 32, 16).mean(axis=(1, 3))
        assert (of_bins * density).sum() / density.sum() >= least


@pytest.mark.parametrize("table", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("version", ["2021", "transcript_id", "cell_id"])
def test_counts_are_those_of_brute_force_for_every_kind_and_version_of_table(tmp_path, folders, table, version):
    points = some_points(folders)
    folder = folders.merscope(tmp_path / "region_0", points, mosaics(), TRANSFORM, version=version, table=table)
    report = read_merscope([folder], tmp_path / "a.zarr", stains=["DAPI"])
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.genes == sorted(folders.genes)
    assert atlas.shape == (1, HEIGHT, WIDTH)
    expected = folders.counted(*px(points), points.gene, atlas.genes, (HEIGHT, WIDTH))
    np.testing.assert_array_equal(whole(atlas, 0), expected)
    assert report.kept.tolist() == [expected.sum()]
    assert report.dropped[OUTSIDE].tolist() == [len(points) - expected.sum()]
    assert expected.sum() < 0.95 * len(points)


def test_without_planes_the_middle_one_is_the_image_and_all_transcripts_count(tmp_path, one):
    folder, points, images = one
    read_merscope([folder], tmp_path / "a.zarr", stains=["PolyT"], scale={"PolyT": (0, 255)})
    atlas = Atlas.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(picture(atlas, 0)[0], np.minimum(images["PolyT", 1], 255))
    x, y = px(points)
    assert whole(atlas, 0).sum() == np.count_nonzero((x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT))
    read_merscope([folder], tmp_path / "b.zarr", stains=["PolyT"], scale={"PolyT": (0, 255)}, image_z=2)
    np.testing.assert_array_equal(picture(Atlas.open(tmp_path / "b.zarr"), 0)[0], np.minimum(images["PolyT", 2], 255))


def test_planes_become_slices_with_their_own_transcripts_and_images(tmp_path, folders):
    points, images = some_points(folders), mosaics(planes=(0, 2))  # plane 1 has no image
    folder = folders.merscope(tmp_path / "region_0", points, images, TRANSFORM)
    report = read_merscope([folder], tmp_path / "a.zarr", stains=["PolyT", "DAPI"], z_planes=True)
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.stains == ["PolyT", "DAPI"]
    assert atlas.slice_z == [0, 1.5]
    assert report.without_slice == np.count_nonzero(points.plane == 1)
    x, y = px(points)
    for index, plane in enumerate((0, 2)):
        here = points.plane == plane
        expected = folders.counted(x[here], y[here], points.gene[here], atlas.genes, (HEIGHT, WIDTH))
        np.testing.assert_array_equal(whole(atlas, index), expected)
        assert report.read[index] == here.sum()
        for stain, name in enumerate(atlas.stains):
            low, high = atlas.metadata.scaling[name]
            expected = np.clip(np.rint((images[name, plane] - low) / (high - low) * 255), 0, 255)
            # float32 arithmetic may round a tie the other way
            np.testing.assert_allclose(picture(atlas, index)[stain], expected, atol=1)


def test_planes_may_lie_where_a_table_says(tmp_path, one):
    table = tmp_path / "planes.csv"
    table.write_text("z_um\n0\n1.2\n2.9\n")
    read_merscope([one[0]], tmp_path / "a.zarr", stains=["DAPI"], z_planes=True, slice_table=table)
    assert Atlas.open(tmp_path / "a.zarr").slice_z == [0, 1.2, 2.9]


def test_mosaics_of_different_sizes_are_black_beyond_their_edges_and_said(tmp_path, folders):
    images = mosaics(planes=(0,))
    images["PolyT", 0] = images["PolyT", 0][:-30, :-11]
    folder = folders.merscope(tmp_path / "region_0", some_points(folders), images, TRANSFORM)
    report = read_merscope([folder], tmp_path / "a.zarr", stains=["DAPI", "PolyT"])
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.shape == (1, HEIGHT, WIDTH)
    assert not picture(atlas, 0)[1, -30:].any()
    assert picture(atlas, 0)[0, -30:].any()
    assert any("271 x 192 and 301 x 203" in note for note in report.notes)


def test_a_plane_that_is_no_whole_number_is_no_plane(tmp_path, folders):
    points = some_points(folders)
    microns = type(points)(points.x, points.y, np.where(points.plane == 1, 1.5, points.plane), points.gene)
    folder = folders.merscope(tmp_path / "region_0", microns, mosaics(), TRANSFORM)
    report = read_merscope([folder], tmp_path / "a.zarr", stains=["DAPI"], z_planes=True)
    assert report.without_slice == np.count_nonzero(points.plane == 1)
    assert any("region_0 z1" in note for note in report.notes)


def test_turned_sections_are_brought_together_by_their_affines(tmp_path, folders):
    """Three sections of one tissue, each turned and shifted on its stage and in its mosaic: counts and images agree."""
    rng = np.random.default_rng(11)
    blobs = rng.uniform(4, 24, (40, 2))  # atlas microns

    def tissue(x, y):
        squares = sum((x - bx) ** 2 < 9 - (y - by) ** 2 for bx, by in blobs)
        return 500 + 400 * squares

    truth = rng.uniform(2, 26, (2, 4000))
    names = rng.choice(folders.genes, 4000)
    paths, affine_files = [], []
    for index, angle in enumerate((0.0, 0.4, -2.1)):
        cos, sin = np.cos(angle), np.sin(angle)
        to_atlas = Affine(np.array([[cos, -sin, 31.3 * index], [sin, cos, -17.7 * index], [0, 0, 1]]))
        to_mosaic = Affine(np.array([[SCALE, 0, -4.3], [0, SCALE * 1.0001, 8.9], [0, 0, 1]]))
        # the mosaic's corner is put so that all of the tissue is on it
        x, y = to_atlas.inverse().apply(np.array([0, 28, 0, 28.0]), np.array([0, 0, 28.0, 28]))
        to_mosaic = Affine.translation(-SCALE * x.min(), -SCALE * y.min()) @ to_mosaic
        height, width = int(SCALE * np.ptp(y)) + 20, int(SCALE * np.ptp(x)) + 23
        row, column = np.mgrid[:height, :width] + 0.5
        mosaic = tissue(*to_atlas.apply(*to_mosaic.inverse().apply(column, row))).astype(np.uint16)
        points = type(some_points(folders))(*to_atlas.inverse().apply(*truth), np.zeros(4000), names)
        name = f"section_{index}"
        paths.append(folders.merscope(tmp_path / name, points, {("DAPI", 0): mosaic}, to_mosaic.matrix))
        matrix = to_atlas.matrix
        if index == 1:  # 4x4, with a part in z that is not used
            matrix = np.insert(np.insert(matrix, 2, (5, 7, 0), axis=1), 2, (0, 0, 1, 9), axis=0)
        affine_files.append(tmp_path / f"{name}.csv")
        np.savetxt(affine_files[-1], matrix, delimiter=",", fmt="%.17g")

    size = 0.125
    report = read_merscope(
        paths,
        tmp_path / "a.zarr",
        stains=["DAPI"],
        z_step_um=100,
        affines=affine_files,
        pixel_size=size,
        extent=Extent(1.0, 27.0, 0.5, 27.0),
        scale={"DAPI": (0, 2550)},
    )
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.shape == (3, 208, 212)
    assert atlas.slice_z == [0, 100, 200]
    expected = folders.counted((truth[0] - 0.5) / size, (truth[1] - 1) / size, names, atlas.genes, (208, 212))
    row, column = np.mgrid[:208, :212] + 0.5
    drawn = np.minimum(tissue(0.5 + size * column, 1 + size * row) / 10, 255)
    for index in range(3):
        # The way there and back may carry a point over the edge of a bin.
        moved = np.abs(whole(atlas, index) - expected).sum()
        assert moved <= 2
        # The edges of the blobs are blurred by one pixel; away from them the values are the drawn ones.
        inner = scipy.ndimage.maximum_filter(drawn, 7) == scipy.ndimage.minimum_filter(drawn, 7)
        assert inner.mean() > 0.2
        np.testing.assert_allclose(picture(atlas, index)[0][inner], drawn[inner], atol=0.6)
        assert np.corrcoef(picture(atlas, index)[0].ravel(), drawn.ravel())[0, 1] > 0.98
    assert report.kept.tolist() == [expected.sum()] * 3
    matrices = [section["microns_to_atlas_pixels"] for section in atlas.metadata.provenance["sections"]]
    np.testing.assert_allclose(matrices[0], [[8, 0, -4], [0, 8, -8], [0, 0, 1]], atol=1e-12)


def test_without_affines_sections_share_the_stage_and_the_frame_is_the_first_mosaic(tmp_path, folders):
    points, images = some_points(folders), mosaics(planes=(0,), stains=("DAPI",))
    shifted = Affine.translation(-20, -33).matrix @ TRANSFORM  # the second mosaic begins lower and further right
    paths = [
        folders.merscope(tmp_path / "first", points, images, TRANSFORM),
        folders.merscope(tmp_path / "second", points, images, shifted),
    ]
    read_merscope(paths, tmp_path / "a.zarr", stains=["DAPI"], z_step_um=10, scale={"DAPI": (0, 255)})
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.shape == (2, HEIGHT + 33, WIDTH + 20)
    assert atlas.pixel_size == pytest.approx(PIXEL_SIZE)
    np.testing.assert_array_equal(whole(atlas, 0), whole(atlas, 1))
    shown = np.minimum(images["DAPI", 0], 255)
    np.testing.assert_array_equal(picture(atlas, 0)[0, :HEIGHT, :WIDTH], shown)
    np.testing.assert_array_equal(picture(atlas, 1)[0, 33:, 20:], shown)
    assert not picture(atlas, 1)[0, :33].any()


def test_controls_are_dropped_by_an_anchored_pattern(tmp_path, folders):
    points = some_points(folders)
    names = np.resize(["Blank-1", "blank_22", "Blankety", "MyBlank-3", "Th", "Blank-7b"], len(points))
    folder = folders.merscope(tmp_path / "region_0", points.with_genes(names), mosaics(), TRANSFORM)
    report = read_merscope([folder], tmp_path / "a.zarr", stains=["DAPI"])
    assert Atlas.open(tmp_path / "a.zarr").genes == ["Blank-7b", "Blankety", "MyBlank-3", "Th"]
    assert report.dropped[CONTROL].tolist() == [len(points) // 3]
    read_merscope([folder], tmp_path / "b.zarr", stains=["DAPI"], controls="nothing is called so")
    assert len(Atlas.open(tmp_path / "b.zarr").genes) == 6


def two_panels(tmp_path, folders):
    points = some_points(folders)
    genes = np.array(folders.genes)
    first = points.with_genes(np.resize(genes[:4], len(points)))
    second = points.with_genes(np.resize(genes[2:], len(points)))
    return [
        folders.merscope(tmp_path / f"section_{index}", each, mosaics(planes=(0,)), TRANSFORM)
        for index, each in enumerate((first, second))
    ]


def test_differing_genes_need_a_choice(tmp_path, folders):
    with pytest.raises(InputError, match="--genes union, intersection or a file") as caught:
        read_merscope(two_panels(tmp_path, folders), tmp_path / "a.zarr", stains=["DAPI"], z_step_um=10)
    assert "Aqp4, Cldn5" in str(caught.value)
    assert not (tmp_path / "a.zarr").exists()


def test_union_intersection_and_file_choose_the_genes(tmp_path, folders):
    paths = two_panels(tmp_path, folders)
    listed = tmp_path / "genes.txt"
    listed.write_text("Th\nAqp4\nUnheard\n\n")
    found, reports = {}, {}
    for choice in ("union", "intersection", listed):
        output = tmp_path / f"{len(found)}.zarr"
        reports[choice] = read_merscope(paths, output, stains=["DAPI"], z_step_um=10, genes=choice)
        found[choice] = Atlas.open(output)
    union = found["union"]
    assert union.genes == sorted(folders.genes)
    assert found["intersection"].genes == sorted(folders.genes[2:4])
    assert found[listed].genes == ["Th", "Aqp4", "Unheard"]
    assert any("Unheard" in note for note in reports[listed].notes)
    for choice in ("intersection", listed):
        for index in range(2):
            expected = whole(union, index)
            place = [union.genes.index(gene) if gene in union.genes else None for gene in found[choice].genes]
            for column, gene in enumerate(place):
                of_gene = whole(found[choice], index)[column]
                np.testing.assert_array_equal(of_gene, 0 if gene is None else expected[gene])
            left_out = expected.sum() - whole(found[choice], index).sum()
            assert reports[choice].dropped[UNKNOWN_GENE][index] == left_out > 0


def test_images_can_be_left_out_where_the_extent_is_given(tmp_path, one):
    folder = one[0]
    extent = Extent(0, HEIGHT * PIXEL_SIZE, 0, WIDTH * PIXEL_SIZE)
    report = read_merscope([folder], tmp_path / "a.zarr", stains=(), extent=extent)
    atlas = Atlas.open(tmp_path / "a.zarr")
    assert atlas.stains == []
    assert whole(atlas, 0).sum() == report.kept.sum() > 0
    with pytest.raises(InputError, match="--extent"):
        read_merscope([folder], tmp_path / "b.zarr", stains=())


def test_slices_lie_where_the_table_says(tmp_path, folders):
    points = some_points(folders)
    paths = [folders.merscope(tmp_path / f"s{index}", points, mosaics(planes=(0,)), TRANSFORM) for index in range(2)]
    table = tmp_path / "slices.csv"
    table.write_text("name,z_um\na,-20\nb,135.5\n")
    read_merscope(paths, tmp_path / "a.zarr", stains=["DAPI"], slice_table=table)
    assert Atlas.open(tmp_path / "a.zarr").slice_z == [-20, 135.5]
    for text, words in (("name,z\na,1\n", "z_um"), ("z_um\n1\n", "2 slices"), ("z_um\n5\n1\n", "increase")):
        table.write_text(text)
        with pytest.raises(InputError, match=words):
            read_merscope(paths, tmp_path / "b.zarr", stains=["DAPI"], slice_table=table)
    with pytest.raises(InputError, match="--z-step-um"):
        read_merscope(paths, tmp_path / "b.zarr", stains=["DAPI"])
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_regions_come_along_with_their_names(tmp_path, one, suffix):
    import tifffile

    folder, _, _ = one
    labels = np.random.default_rng(2).integers(0, 3, (19, 13)).astype(np.uint16)
    path = tmp_path / f"labels{suffix}"
    np.save(path, labels) if suffix == ".npy" else tifffile.imwrite(path, labels)
    names = tmp_path / "labels.csv"
    names.write_text("id,name\n1,cortex\n2,striatum\n")
    read_merscope([folder], tmp_path / "a.zarr", stains=["DAPI"], regions=path)
    assert Atlas.open(tmp_path / "a.zarr").metadata.region_names == {1: "cortex", 2: "striatum"}
    import zarr

    np.testing.assert_array_equal(zarr.open(tmp_path / "a.zarr")["regions"][0], labels)
    names.write_text("id,name\n1,cortex\n")
    with pytest.raises(InputError, match=r"label 2 .* has no name"):
        read_merscope([folder], tmp_path / "b.zarr", stains=["DAPI"], regions=path)
    np.save(tmp_path / "small.npy", labels[1:])
    small = {"regions": tmp_path / "small.npy", "region_names": names}
    with pytest.raises(InputError, match="bins"):
        read_merscope([folder], tmp_path / "b.zarr", stains=["DAPI"], **small)
    assert not (tmp_path / "b.zarr").exists()


def break_column(folder):
    path = folder / "detected_transcripts.csv"
    path.write_text(path.read_text().replace("global_y", "global_v", 1))


def break_image(folder):
    (folder / "images" / "mosaic_DAPI_z1.tif").unlink()


def break_stain(folder):
    for path in (folder / "images").glob("mosaic_DAPI_*"):
        path.unlink()


def break_transform(folder):
    (folder / "images" / "micron_to_mosaic_pixel_transform.csv").write_text("1 2 0\n2 4 0\n0 0 1\n")


def break_csv_line(folder):
    path = folder / "detected_transcripts.csv"
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b",")])


def break_csv_number(folder):
    path = folder / "detected_transcripts.csv"
    lines = path.read_text().splitlines()
    lines[900] = re.sub(r"^([^,]*,[^,]*),[^,]*,", r"\1,12.3.4,", lines[900])
    path.write_text("\n".join(lines))


def break_gzip(folder):
    import gzip

    path = folder / "detected_transcripts.csv"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    (folder / "detected_transcripts.csv.gz").write_bytes(packed[: len(packed) // 2])


def break_parquet(folder):
    import pyarrow.csv as pa_csv

    pq.write_table(pa_csv.read_csv(folder / "detected_transcripts.csv"), folder / "detected_transcripts.parquet")
    content = (folder / "detected_transcripts.parquet").read_bytes()
    (folder / "detected_transcripts.parquet").write_bytes(content[:-100])


def break_parquet_inside(folder):
    import pyarrow.csv as pa_csv

    table = pa_csv.read_csv(folder / "detected_transcripts.csv")
    pq.write_table(table, folder / "detected_transcripts.parquet", compression="zstd")
    content = bytearray((folder / "detected_transcripts.parquet").read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    (folder / "detected_transcripts.parquet").write_bytes(content)


def break_tiff(folder):
    path = folder / "images" / "mosaic_DAPI_z1.tif"
    path.write_bytes(path.read_bytes()[:-1000])


def break_position(folder):
    (folder / "images" / "micron_to_mosaic_pixel_transform.csv").write_text("1 0 90000\n0 1 0\n0 0 1\n")


def break_table(folder):
    (folder / "detected_transcripts.csv").unlink()


def break_rows(folder):
    path = folder / "detected_transcripts.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")


def break_header(folder):
    (folder / "detected_transcripts.csv").write_text("")


FAULTS = {
    break_column: "no column global_y; its columns are",
    break_image: "no image of DAPI at plane 1",
    break_stain: "no image of the stain DAPI; it has PolyT",
    break_transform: "micron_to_mosaic_pixel_transform.csv: .* not invertible",
    break_csv_line: "truncated or garbled .*columns",
    break_csv_number: r"truncated or garbled .*12\.3\.4",
    break_gzip: r"detected_transcripts\.csv\.gz is truncated",
    break_parquet: r"detected_transcripts\.parquet is truncated",
    break_parquet_inside: r"detected_transcripts\.parquet is truncated",
    break_tiff: r"mosaic_DAPI_z1\.tif is truncated",
    break_position: "no transcript of .* lies inside the image",
    break_table: r"holds no detected_transcripts\.csv",
    break_rows: "no transcript of .* lies inside the image",
    break_header: "no column global_x",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_sentence_and_leaves_nothing_behind(tmp_path, one, fault):
    folder, _, _ = one
    fault(folder)
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(InputError, match=FAULTS[fault]) as caught:
        read_merscope([folder], output / "a.zarr", stains=["DAPI", "PolyT"])
    assert "\n" not in str(caught.value)
    assert not list(output.iterdir())


@pytest.mark.usefixtures("one")
def test_the_experiments_folder_points_to_its_regions(tmp_path):
    with pytest.raises(InputError, match="give its region_0"):
        read_merscope([tmp_path], tmp_path / "a.zarr", stains=["DAPI"])
    with pytest.raises(InputError, match="there is no folder"):
        read_merscope([tmp_path / "nowhere"], tmp_path / "a.zarr", stains=["DAPI"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stains": ["DAPI", "DAPI"]}, "named twice"),
        ({"pixel_size": -0.1}, "pixel size"),
        ({"extent": Extent(5, 5, 0, 9)}, "empty"),
        ({"scale": {"PolyT": (0, 1)}}, "not among the stains"),
        ({"scale": {"DAPI": (9, 1)}}, "empty"),
        ({"percentiles": (99, 1)}, "percentiles"),
        ({"image_z": 9}, "no images of plane 9; its planes are 0, 1, 2"),
        ({"controls": "("}, "regular expression"),
        ({"affines": []}, "0 affines were given for 1 folders"),
        ({"z_step_um": 1, "slice_table": "t.csv"}, "give one of them"),
        ({"genes": "no/such/file"}, "no/such/file"),
        ({"extent": Extent(0, 1e9, 0, 1e9)}, "too large"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_are_refused(tmp_path, one, options, words):
    with pytest.raises(InputError, match=words):
        read_merscope([one[0]], tmp_path / "a.zarr", **{"stains": ["DAPI"], **options})
    assert not (tmp_path / "a.zarr").exists()


def test_an_atlas_is_replaced_only_when_asked(tmp_path, one):
    output = tmp_path / "a.zarr"
    read_merscope([one[0]], output, stains=["DAPI"])
    with pytest.raises(InputError, match="there already"):
        read_merscope([one[0]], output, stains=["PolyT"])
    assert Atlas.open(output).stains == ["DAPI"]
    read_merscope([one[0]], output, stains=["PolyT"], overwrite=True)
    assert Atlas.open(output).stains == ["PolyT"]


def test_the_report_is_kept_in_the_store(tmp_path, one):
    report = read_merscope([one[0]], tmp_path / "a.zarr", stains=["DAPI"])
    assert Atlas.open(tmp_path / "a.zarr").metadata.provenance["report"] == report.as_dict()
