"""`prepare`: tables as they come, against what pandas and NumPy make of them by hand."""

import pickle
import warnings

import numpy as np
import pandas
import pytest

import dmftopt

N = 200


def table(seed=0, samples=N):
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 10, size=samples)
    return pandas.DataFrame(
        {
            "age": np.where(rng.random(samples) < 0.1, np.nan, age),
            "city": rng.choice(["Ulm", "Bonn", "Kiel"], size=samples),
            "member": rng.random(samples) < 0.5,
            "weight": rng.normal(size=samples),
        }
    )


def test_numbers_categories_and_missing_entries():
    frame = table()
    prepared = dmftopt.prepare(frame)
    assert list(prepared.get_feature_names_out()) == ["age", "member", "weight", "city_Kiel", "city_Ulm"]
    by_hand = pandas.DataFrame({"age": frame.age.fillna(frame.age.median()), "member": frame.member, "weight": frame.weight})
    by_hand = by_hand.assign(Kiel=frame.city == "Kiel", Ulm=frame.city == "Ulm").to_numpy(dtype=float)
    center, scale = by_hand.mean(axis=0), by_hand.std(axis=0)
    np.testing.assert_allclose(prepared.transform(frame), (by_hand - center) / scale, atol=1e-12)
    # New tables by what was learned from the first one, whatever the order of their columns.
    other = table(1, 5)[["weight", "city", "age", "member"]].assign(age=np.nan)
    found = pickle.loads(pickle.dumps(prepared)).transform(other)
    np.testing.assert_allclose(found[:, 0], (frame.age.median() - center[0]) / scale[0])
    np.testing.assert_allclose(found[:, 4], ((other.city == "Ulm") - center[4]) / scale[4])
    problem = dmftopt.Problem.from_data(prepared.transform(frame), frame.weight + 0.1 * frame.member, train_size=100)
    assert problem.data is not None and problem.data.dimension == 5


def test_every_kind_of_column_is_read_alike():
    frame = table()
    expected = dmftopt.prepare(frame).transform(frame)
    kinds = [frame.astype({"age": "Float64", "city": "category", "member": "boolean"}), frame.astype(object)]
    for kind in kinds:
        np.testing.assert_array_equal(dmftopt.prepare(kind).transform(kind), expected)
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(dmftopt.prepare(x).transform(x), (x - x.mean(axis=0)) / x.std(axis=0), atol=1e-12)


def test_polars():
    polars = pytest.importorskip("polars")
    frame = table()
    other = polars.DataFrame({name: [None if a != a else a for a in frame[name].tolist()] for name in frame})
    np.testing.assert_array_equal(dmftopt.prepare(other).transform(other), dmftopt.prepare(frame).transform(frame))


def test_what_is_dropped_is_named():
    frame = table().assign(one=1.0, nothing=np.nan, land="D")
    frame["sum"] = 2 * frame.weight - 3 * frame.member
    with pytest.warns(dmftopt.DataWarning) as caught:
        prepared = dmftopt.prepare(frame)
    (note,) = [str(w.message) for w in caught]
    for said in ("one (constant)", "nothing (without an entry)", "land (constant)", "sum (linear in those before it)"):
        assert said in note
    np.testing.assert_allclose(prepared.transform(frame), dmftopt.prepare(table()).transform(table()))


def test_a_missing_category_is_one():
    frame = table()
    frame.loc[::4, "city"] = None
    assert "city_Bonn" in dmftopt.prepare(frame).get_feature_names_out()  # "(missing)" is the first by alphabet


def test_few_samples_and_heavy_tails_are_warned_of():
    rng = np.random.default_rng(0)
    with pytest.warns(dmftopt.DataWarning, match="30 samples for 20 columns, 1.5 per column"):
        dmftopt.prepare(rng.normal(size=(30, 20)))
    heavy = pandas.DataFrame({"normal": rng.normal(size=1000), "cauchy": rng.standard_cauchy(size=1000)})
    with pytest.warns(dmftopt.DataWarning, match=r"heavy tails: 1 of 2 columns .* cauchy \(\d\d\)"):
        dmftopt.prepare(heavy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dmftopt.prepare(rng.normal(size=(1000, 20)))


BAD = {
    "dates": (table().assign(day=pandas.Timestamp("2020-01-01")), TypeError, "column 'day' holds .* Turn it into numbers"),
    "numbers and text": (table().assign(mix=["a", 1] * (N // 2)), TypeError, "column 'mix' holds int and str"),
    "infinite": (table().assign(weight=np.r_[np.inf, np.arange(N - 1)]), ValueError, "'weight' holds infinite entries"),
    "a name": (table().assign(name=[f"n{i}" for i in range(N)]), ValueError, "'name' is different text in most samples"),
    "too few samples": (np.random.default_rng(0).normal(size=(10, 9)), ValueError, "10 samples and 9 columns"),
    "one axis": (np.arange(3.0), ValueError, r"table must have shape \(samples, columns\)"),
    "no column": (np.ones((5, 2)), ValueError, "no column that varies"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables(name):
    given, error, match = BAD[name]
    with pytest.raises(error, match=match):
        dmftopt.prepare(given)


def test_other_tables_must_be_alike():
    prepared = dmftopt.prepare(table())
    with pytest.raises(ValueError, match=r"table lacks columns \['age'\]"):
        prepared.transform(table().drop(columns="age"))
    with pytest.raises(TypeError, match="'weight' is a number in the table that was prepared, and here a category"):
        prepared.transform(table().assign(weight="a"))
