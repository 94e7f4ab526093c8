"The tutorials as papermill runs them: nobody clicks, nothing waits, and a class name comes from a function."

import csv
from pathlib import Path
import executed
import nbformat
from pictures import photos
from semissl import FewLabelClassifier

TUTORIALS = Path(__file__).resolve().parents[1] / "nbs" / "tutorials"


def papermill(name, cwd, **parameters):
    return executed.papermill(TUTORIALS / name, cwd / "out.ipynb", cwd, **parameters)


def told(folder):
    return "".join(
        o.get("text", "")
        for c in nbformat.read(folder / "out.ipynb", 4).cells
        if c.cell_type == "code"
        for o in c.outputs
    )


QUICK = dict(
    images="photos",
    image_size=16,
    look_budget="1000 images",
    budget="20000 images",
    more_budget="2000 images",
    wanted=30,
    corrections=6,
    folder="mine",
)


def test_own_images_with_a_function_that_answers(tmp_path):
    "A flat folder of JPEG, PNG and WebP in several modes and sizes, no label in any name; one broken file."
    truth = photos(tmp_path / "photos", 150)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 no")
    (tmp_path / "truth.py").write_text(
        f"truth = {truth!r}\nasked = open('asked.txt', 'a')\ndef label(path): print(path, file=asked, flush=True); "
        f"return truth[path]\n"
    )
    done = papermill("own_images.ipynb", tmp_path, **QUICK, answer="truth:label")
    assert done.returncode == 0, done.stderr[-4000:]
    asked = (tmp_path / "asked.txt").read_text().split()
    assert len(asked) == len(set(asked)) == 36  # no label but those that were asked for
    rows = list(csv.DictReader(open(tmp_path / "mine" / "predictions.csv", newline="", encoding="utf-8")))
    assert len(rows) == 150 and sum(r["label"] == truth[r["path"]] for r in rows) > 90
    assert "broken.jpg: expected an image" in told(tmp_path) and "36 labels;" in told(tmp_path)
    home = FewLabelClassifier.load(tmp_path / "mine" / "model.safetensors")
    assert set(home.predict([str(tmp_path / "photos" / p) for p in truth])) <= {"temple", "flower", "pattern"}
    assert (tmp_path / "mine" / "model.onnx").exists() and (tmp_path / "mine" / "predictions.parquet").exists()


def test_own_images_on_its_example(tmp_path):
    "What a stranger sees first: no folder is named, and the labels of the digits answer when they are asked."
    done = papermill("own_images.ipynb", tmp_path, wanted=30, corrections=6, folder="mine")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "1297 images" in told(tmp_path) and "36 labels;" in told(tmp_path)
    assert len(list(csv.DictReader(open(tmp_path / "mine" / "predictions.csv", newline="", encoding="utf-8")))) == 1297


def test_own_images_without_an_answer_stops_and_says_so(tmp_path):
    photos(tmp_path / "photos", 60)
    done = papermill("own_images.ipynb", tmp_path, **QUICK)
    assert done.returncode != 0 and "there is no label yet: label the images above" in done.stderr.replace("\n", " ")


def test_quickstart(tmp_path):
    done = papermill("quickstart.ipynb", tmp_path, budget="5000 images", data="digits")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "of 500 test images right" in told(tmp_path)
