"scikit-learn's own checks of an estimator, those that make sense for images, and what it says to nonsense."

import pickle, subprocess, sys
import numpy as np
import pytest
import sklearn
import torch
from pictures import photos
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from semissl import FewLabelClassifier
from semissl.data.images import from_arrays


@parametrize_with_checks([FewLabelClassifier(encoder="small", epochs=1)])
def test_scikit_learn(estimator, check):
    check(estimator)


ALSO = [
    "check_parameters_default_constructible",
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_do_not_raise_errors_in_init_or_set_param",
    "check_mixin_order",
    "check_estimator_get_tags_default_keys",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_estimator_cloneable",
]


@pytest.mark.parametrize("name", ALSO)
def test_scikit_learn_by_name(name):
    if not (check := getattr(estimator_checks, name, None)):
        pytest.skip(f"scikit-learn {sklearn.__version__} has no {name}")
    check("FewLabelClassifier", FewLabelClassifier(encoder="small", epochs=1))


@pytest.fixture(scope="module")
def data():
    "Forty pictures of two kinds, bright and dark; a third of the labels known."
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = (rng.integers(0, 120, (40, 12, 12, 3)) + 120 * y[:, None, None, None]).astype(np.uint8)
    return x, y, np.where(np.arange(40) % 3 == 0, y, -1)


@pytest.fixture(scope="module")
def fitted(data):
    return FewLabelClassifier(encoder="small", epochs=12, batch_size=20, settings={"projector_dim": 32}).fit(
        data[0], data[2]
    )


def test_answers_agree(data, fitted):
    x, y, _ = data
    p = fitted.predict_proba(x)
    assert (
        p.shape == (40, 2)
        and np.allclose(p.sum(1), 1)
        and (fitted.predict(x) == fitted.classes_[p.argmax(1)]).all()
        and fitted.score(x, y) > 0.9
    )
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(fitted.predict_proba(x[order]), p[order], atol=1e-5)  # order does not matter
    # nor do subsets
    np.testing.assert_allclose(np.concatenate([fitted.predict_proba(x[:7]), fitted.predict_proba(x[7:])]), p, atol=1e-5)
    before = {k: v for k, v in vars(fitted).items()}
    fitted.predict(x)
    fitted.transform(x)
    fitted.suggest(3)
    assert {k: v for k, v in vars(fitted).items()} == before  # predicting changes nothing


def test_fit_again_is_the_same_and_returns_self(data, fitted):
    x, _, few = data
    again = clone(fitted)
    assert again.fit(x, few) is again
    np.testing.assert_array_equal(again.predict_proba(x), fitted.predict_proba(x))
    assert (clone(fitted).set_params(random_state=1).fit(x, few).predict_proba(x) != fitted.predict_proba(x)).any()


def test_names_instead_of_numbers_change_nothing(data, fitted):
    x, _, few = data
    named = clone(fitted).fit(x, np.array(["dark", "light", ""], dtype=object)[few])
    assert (
        named.classes_.tolist() == ["dark", "light"]
        and (named.predict_proba(x) == fitted.predict_proba(x)).all()
        and set(named.predict(x)) == {"dark", "light"}
    )


def test_fit_does_not_touch_what_it_is_given(data, fitted):
    x, _, few = data
    x2, few2 = x.copy(), few.copy()
    x2.setflags(write=False)
    few2.setflags(write=False)
    clone(fitted).set_params(epochs=1).fit(x2, few2)
    assert (x2 == x).all() and (few2 == few).all()


def test_pickle_and_file(data, fitted, tmp_path):
    p = fitted.predict_proba(data[0])
    assert (pickle.loads(pickle.dumps(fitted)).predict_proba(data[0]) == p).all()
    assert (FewLabelClassifier.load(fitted.save(tmp_path / "m.safetensors")).predict_proba(data[0]) == p).all()


def test_hidden_labels_never_matter(data, fitted):
    "A source that knows all labels, and one that has them wrong: only those in y can reach the weights."
    x, y, few = data
    right, wrong = (clone(fitted).set_params(epochs=2).fit(from_arrays(x, labels), few) for labels in (y, 1 - y))
    assert all(torch.equal(v, wrong.model_.state_dict()[k]) for k, v in right.model_.state_dict().items())
    assert (
        right.predict(x)[few >= 0].tolist()
        == clone(fitted).set_params(epochs=2).fit(x, few).predict(x)[few >= 0].tolist()
    )


@pytest.mark.parametrize(
    "images, y, told",
    [
        (np.zeros((4, 5)), None, "expected rows of S"),
        (np.zeros((4, 8, 8, 3)), [0, 1], "expected 4 labels"),
        (np.full((5, 8, 8), 7.5), None, "floats from 0 to 1"),
        ([], None, "expected at least 1 image"),
        (np.zeros((5, 8, 8)), [1, 1, -1, 1, 1], "at least 2 classes"),
        (np.zeros((4, 8, 8)), None, "expected a shape with one meaning"),
        (["nowhere.png"], None, "nowhere.png: expected"),
        (np.zeros((5, 8, 6)), None, "expected square images or a size"),
    ],
)
def test_nonsense_is_refused(images, y, told):
    with pytest.raises(ValueError) as said:
        FewLabelClassifier(encoder="small", epochs=1).fit(images, y)
    assert told in str(said.value)


def test_before_fit_it_says_so(data):
    for ask in ("predict", "predict_proba", "transform"):
        with pytest.raises(NotFittedError):
            getattr(FewLabelClassifier(), ask)(data[0])
    with pytest.raises(NotFittedError):
        FewLabelClassifier().suggest(3)


def test_paths_of_mixed_photos(tmp_path):
    truth = photos(tmp_path / "p", 30)
    paths = [str(tmp_path / "p" / name) for name in truth]
    y = [kind if i < 12 else "" for i, kind in enumerate(truth.values())]
    found = FewLabelClassifier(encoder="small", image_size=16, epochs=2, batch_size=15).fit(paths, y)
    assert found.predict(paths).shape == (30,) and list(found.classes_) == ["flower", "pattern", "temple"]


def test_import_does_no_work():
    code = (
        "import sys, semissl; assert 'torch' not in sys.modules and 'sklearn' not in sys.modules; "
        "semissl.FewLabelClassifier; assert 'torch' in sys.modules\ntry: semissl.nothing\nexcept AttributeError as "
        "err: print(err)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has no attribute 'nothing'" in done.stdout, done.stderr
