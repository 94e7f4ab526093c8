"Two notebooks that label at once, a disk that is full, and a package without the widget."

import json, subprocess, sys
from semissl.data.table import read_labels
from semissl.use.decisions import Labels
from semissl.use.labeller import Labeller
from semissl.use.talk import respond


def test_two_that_label_at_once_lose_no_click(tmp_path):
    code = (
        "import sys; from semissl.use.decisions import Labels; t = Labels(sys.argv[1])\nfor i in range(100): "
        "t.put({f'{sys.argv[2]}/{i}.png': 'cat'})"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "labels.csv"), name], stderr=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    said = [p.communicate(timeout=120)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert set(read_labels(tmp_path / "labels.csv")) == {f"{name}/{i}.png" for name in "ab" for i in range(100)}


def test_without_the_lock_clicks_are_lost(tmp_path, monkeypatch):
    "The test above can fail: two interleaved writers that do not read first."
    one, other = Labels(tmp_path / "labels.csv"), Labels(tmp_path / "labels.csv")
    for labels in (one, other):
        labels.read = lambda: {}
    one.put({"a.png": "cat"})
    other.put({"b.png": "dog"})
    assert read_labels(tmp_path / "labels.csv") == {"b.png": "dog"}


def test_undo_leaves_what_another_window_decided(tmp_path):
    one, other = (Labeller("digits", tmp_path / "labels.csv", order=[0, 1]) for _ in range(2))
    one.label(one.order[0], "seven")
    other.label(other.order[0], "nine")
    assert one.undo() == one.order[0] and read_labels(tmp_path / "labels.csv") == {one.order[0]: "nine"}


def test_a_disk_that_refuses_is_told_in_the_window(tmp_path, monkeypatch):
    labeller = Labeller("digits", tmp_path / "labels.csv", ["a", "b"], order=[0, 1])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(labeller.labels, "put", full)
    told = respond(labeller, dict(id="1", window="w", do="label", path=labeller.order[0], label="a"))
    assert told["answered"] == "1" and "No space left" in told["problem"]
    assert told["state"]["labelled"] == 0 and labeller.table == {} and not labeller.history
    assert told["line"] == labeller.order  # it is asked again


def test_without_anywidget_the_labeller_still_answers(tmp_path):
    code = (
        "import sys; sys.modules['anywidget'] = None\nfrom semissl.use.labeller import Labeller\n"
        "l = Labeller('digits', 'labels.csv', order=range(5)).answer(lambda path: 'a' if int(path) % 2 else "
        "'')\nprint(l)\n"
        "try: l.widget\nexcept ImportError as err: print(err)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (
        "expected anywidget to show the labeller, got no such package" in done.stdout
        and len(read_labels(tmp_path / "labels.csv")) == 5
    ), done.stderr


def test_what_a_new_window_receives_is_small(tmp_path):
    "JSON, with the pictures of the questions in hand; a page that is loaded again goes on with open ones."
    labeller = Labeller("digits", tmp_path / "labels.csv", ["a", "b"], order=range(30))
    first = respond(labeller, dict(id="1", window="w", do="news"))
    assert len(json.dumps(first)) < 300_000 and len(first["items"]) == len(first["line"]) == 8
    respond(labeller, dict(id="2", window="w", do="label", path=first["line"][0], label="a", have=first["line"][1:]))
    again = respond(labeller, dict(id="1", window="another", do="news"))
    assert not set(again["line"]) & set(first["line"])  # those may still be in front of somebody
    labeller.hands.clear()  # a minute later
    again = respond(labeller, dict(id="1", window="yet another", do="news"))
    assert again["line"] == labeller.order[1:9] and again["state"]["labelled"] == 1
