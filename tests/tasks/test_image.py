"""Images as rows: both layouts, the order law, what crops are, and bad files told with their member."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.data.hashing import row_keys, uniform
from megadistill.data.stream import HeldOut, Stream
from megadistill.models.images import default_processor, view_of
from megadistill.tasks.image import ImageTask
from megadistill.tasks.image_rows import ATTEMPTS, Crops, crop
from megadistill.testing import image_files

SIZE = 32


def task(train, dev, **options):
    given = {"image_size": SIZE, **options}
    return ImageTask(kind="image", train=[str(train)], dev=[str(dev)], **given)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    shards = [
        image_files.shards(root / f"shards-{part}", 54, seed, each=30) for part, seed in (("train", 1), ("dev", 2))
    ]
    folders = [image_files.folder(root / f"folder-{part}", 54, seed) for part, seed in (("train", 1), ("dev", 2))]
    return task(*shards, labels=list(image_files.NAMES)), task(*folders)


def everything(opened):
    rows = np.arange(len(opened.rows.images))
    return opened.rows.take(rows)


def test_both_layouts_give_the_same_images(sets):
    shards, folders = (everything(one.open("dev")) for one in sets)
    assert sets[1].head.names == image_files.NAMES
    by_class = np.argsort(shards.labels.flatten().numpy(), kind="stable")
    assert (shards.labels[by_class] == folders.labels).all()
    lossless = [at for at, row in enumerate(by_class) if row % 3 == 0]  # the others were written as jpg and webp
    assert (shards.pixels[by_class][lossless] == folders.pixels[lossless]).all()
    assert set(shards.counts().tolist()) == {54}


def test_an_image_that_is_shown_whole_is_what_its_processor_makes_of_it(sets):
    opened = sets[1].open("dev")
    image = Image.open(io.BytesIO(opened.rows.images.read(7))).convert("RGB")
    processor = default_processor(SIZE)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = view_of(processor, "")(opened.rows.take(np.array([7])).pixels)
    assert ours.shape == (1, 3, SIZE, SIZE)
    assert float((ours - theirs).abs().max()) < 1e-5


def test_the_same_global_batches_come_from_one_rank_and_from_two(sets):
    rows = sets[0].open("train").rows

    def taken(ranks, micro, step):
        streams = [Stream(rows, World(rank, ranks), 12, micro, seed=3) for rank in range(ranks)]
        found = [batch for stream in streams for batch in stream.take(step)]
        return {int(row): (b.pixels[i], int(b.labels[i])) for b in found for i, row in enumerate(b.rows)}

    for step in (0, 3, 40):
        whole, halves = taken(1, 6, step), taken(2, 3, step)
        assert whole.keys() == halves.keys()
        assert all((whole[row][0] == halves[row][0]).all() and whole[row][1] == halves[row][1] for row in whole)


def test_a_crop_depends_on_seed_epoch_and_row_alone(sets):
    rows = sets[0].open("train").rows
    epoch = len(rows.images)
    places = rows.order(3, []).locate(np.arange(2 * epoch))
    first = {int(row): at for at, row in enumerate(places.row[:epoch])}
    second = {int(row): at + epoch for at, row in enumerate(places.row[epoch:])}
    assert first.keys() == second.keys()
    pixels = rows.batch(places, 3, "targets").pixels
    same = sum(bool((pixels[first[row]] == pixels[second[row]]).all()) for row in first)
    assert same < epoch / 10
    alone = rows.batch(type(places)(*(part[5:6] for part in places)), 3, "targets").pixels
    assert (alone[0] == pixels[5]).all()
    assert (rows.batch(places, 4, "targets").pixels != pixels).any()
    held = HeldOut(sets[0].open("dev").rows)
    one, again = (next(held.batches(8, seed, World(0, 1))) for seed in (3, 3))
    assert (one.pixels == again.pixels).all()


def test_crops_have_the_areas_and_ratios_asked_for_and_lie_in_the_image():
    crops = Crops()
    draws = uniform(row_keys(0, "t", "images", np.zeros(4000, np.int64), np.arange(4000)), 0, 4 * ATTEMPTS + 1)
    boxes = np.array([crop(one, 320, 240, crops) for one in draws])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() == 320
    assert boxes[:, 3].max() == 240
    area, ratio = widths * heights / (320 * 240), widths / heights
    assert 0.075 < area.min() < 0.1
    assert area.max() <= 1
    assert 0.73 < ratio.min() < 0.78
    assert 1.29 < ratio.max() < 1.36
    assert abs((boxes[:, 0] / np.maximum(320 - widths, 1)).mean() - 0.5) < 0.03
    assert crop(draws[0], 10, 1000, crops) == (0, 493, 10, 506)  # no attempt fits: the middle of 3/4
    assert len({tuple(box) for box in boxes.tolist()}) > 3900
    square = np.array([crop(one, 300, 300, crops) for one in draws])
    aspects = (square[:, 2] - square[:, 0]) / (square[:, 3] - square[:, 1])
    assert abs(np.log(aspects).mean()) < 0.01  # wide as often as narrow


def test_mirroring_happens_as_often_as_asked_for(sets):
    whole = {"area": [1.0, 1.0], "ratio": [0.2, 5.0]}

    def mirrored(often):
        one = task(sets[1].train[0], sets[1].dev[0], crops={**whole, "mirror": often})
        rows = one.open("train").rows
        return rows.batch(rows.order(0, []).locate(np.arange(54)), 0, "targets").pixels

    never, always, half = mirrored(0), mirrored(1), mirrored(0.5)
    assert (never.flip(-1).float() - always.float()).abs().max() <= 1  # resizing rounds
    unchanged = sum(bool((a == b).all()) for a, b in zip(never, half, strict=True))
    assert 15 < unchanged < 39


def test_scores_count_the_first_and_the_first_five(sets):
    opened = sets[0].open("dev")
    truth = opened.rows.classes
    logits = np.zeros((54, 6), np.float32)
    logits[np.arange(54), truth] = 1.0
    logits[:9, :] = np.eye(6, dtype=np.float32)[(truth[:9] + 1) % 6]  # wrong, and the truth tied behind
    logits[np.arange(3), truth[:3]] = -1.0  # the last of six
    scores, shown = opened.score(list(logits))
    assert scores["accuracy"] == 45 / 54
    assert scores["accuracy_top5"] <= 51 / 54
    assert shown[20] == image_files.NAMES[truth[20]]
    assert sets[0].primary({"dev": scores}) == scores["accuracy"]


def test_the_fingerprint_tells_other_images_from_the_same_ones_elsewhere(sets, tmp_path):
    def fingerprint(seed=1, **options):
        pattern = image_files.shards(tmp_path / f"{seed}-{len(options)}", 12, seed)
        return task(pattern, pattern, labels=list(image_files.NAMES), **options).open("train").rows.fingerprint(0)

    assert fingerprint() == fingerprint(image_size=SIZE)
    assert len({fingerprint(), fingerprint(2), fingerprint(image_size=24), fingerprint(crops=None)}) == 4


def png(colour=(10, 20, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(buffer, "png")
    return buffer.getvalue()


GOOD = {"0.png": png(), "0.cls": b"a", "1.png": png(), "1.cls": b"b"}


def told(folder, members, act=lambda one: one.open("train"), **options):
    path = image_files.tar(folder / "x.tar", members)
    with pytest.raises(UserError) as raised:
        act(task(path, path, **options))
    return str(raised.value)


def first_batch(one):
    rows = one.open("train").rows
    rows.take(np.arange(2))


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({**GOOD, "2.png": png()}, "x.tar member 2.png has no label"),
        ({**GOOD, "2.png": png(), "2.json": b'{"class": 1}'}, "member 2.json has no label in field 'label'"),
        ({**GOOD, "2.png": png(), "2.json": b"{"}, "member 2.json is no label"),
        ({**GOOD, "2.png": png(), "2.jpg": png(), "2.cls": b"a"}, "a second image of 2"),
        ({**GOOD, "1.json": b'{"label": "a"}'}, "a second label of 1"),
        ({"0.txt": b"a"}, "task.train: no image"),
        ({"0.png": png(), "0.cls": b"a"}, "the labels are all the same"),
        ({"0.png": png(), "0.cls": b"0", "1.png": png(), "1.cls": b"2"}, "class '1' has no images"),
    ],
)
def test_shards_that_say_too_little_or_too_much_are_told(tmp_path, members, expected):
    assert expected in told(tmp_path, members)


def test_labels_outside_the_set_and_classes_without_images_are_told(tmp_path):
    assert "x.tar member 1.png: 'b' is no label" in told(tmp_path, GOOD, labels=["a", "c"])
    assert "class 'c' has no images" in told(tmp_path, GOOD, labels=["a", "b", "c"])
    train, dev = tmp_path / "train", tmp_path / "dev"
    for name in ("a", "b"):
        (train / name).mkdir(parents=True)
        (train / name / "0.png").write_bytes(png())
    (dev / "d").mkdir(parents=True)
    (dev / "d" / "0.png").write_bytes(png())
    with pytest.raises(UserError, match=r"dev/d/0.png: 'd' is no label"):
        task(train, dev).open("dev")
    (train / "e").mkdir()
    with pytest.raises(UserError, match="class 'e' has no images"):
        task(train, dev).open("train")
    with pytest.raises(UserError, match=r"task.dev: no file .*nowhere"):
        task(dev, tmp_path / "nowhere").open("dev")


def test_an_image_that_cannot_be_read_is_told_by_shard_and_member(tmp_path):
    for broken in (b"no image", png()[:60], b""):
        said = told(tmp_path, {**GOOD, "1.png": broken}, first_batch)
        assert "x.tar member 1.png cannot be read as an image" in said
        assert "0x" not in said
    (tmp_path / "a").mkdir()
    for name in ("a", "b"):
        (tmp_path / "f" / name).mkdir(parents=True)
        (tmp_path / "f" / name / "0.jpg").write_bytes(png() if name == "a" else b"no")
    with pytest.raises(UserError, match=r"f/b/0.jpg cannot be read"):
        first_batch(task(tmp_path / "f", tmp_path / "f"))


def test_shards_that_are_damaged_cut_or_packed_are_told(tmp_path):
    members = {f"{number}.{end}": png() if end == "png" else b"a" for number in range(4) for end in ("png", "cls")}
    path = image_files.tar(tmp_path / "x.tar", members)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        header = archive.getmembers()[4].offset
    for damaged, expected in (
        (whole[:header] + b"\xff" * 512 + whole[header + 512 :], "is damaged"),
        (whole[: header + 600], "cannot be read as a tar"),
        (whole[:header], "is damaged"),
        (b"", "cannot be read as a tar"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=expected):
            task(path, path).open("train")
    packed = path.rename(tmp_path / "x.tar.gz")
    with pytest.raises(UserError, match=r"is no \.tar"):
        task(packed, packed).open("train")


def test_a_processor_that_is_not_there_or_makes_no_squares_is_told(sets, tmp_path):
    where = {"train": sets[1].train, "dev": sets[1].dev, "kind": "image"}
    with pytest.raises(UserError, match="has no image processor"):
        _ = ImageTask(**where, processor=str(tmp_path)).head
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 3.5}')
    with pytest.raises(UserError, match=r"cannot read|cannot be used"):
        _ = ImageTask(**where, processor=str(tmp_path)).head
    text = '{"image_processor_type": "DeiTImageProcessor", "do_center_crop": false, "size": {"shortest_edge": 32}}'
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match="makes no square images"):
        _ = ImageTask(**where, processor=str(tmp_path)).head
    with pytest.raises(ValueError, match="the processor says it"):
        ImageTask(**where, processor=str(tmp_path), image_size=32)
