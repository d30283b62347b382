"""Digests that prove conservation: blind to order, not to a sample swapped, lost, doubled or altered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shards.digest import Conservation, SampleDigest, difference, fingerprint, keys_digest, sample_hash

SAMPLE = st.tuples(
    st.text(max_size=8), st.dictionaries(st.sampled_from(["jpg", "txt", "json"]), st.binary(max_size=20))
)
SAMPLES = st.lists(SAMPLE, min_size=2, max_size=8, unique_by=lambda s: s[0])


def digest(samples: list[tuple[str, dict[str, bytes]]]) -> SampleDigest:
    total = SampleDigest()
    for key, members in samples:
        total.add(sample_hash(key, members.items()))
    return total


@given(samples=SAMPLES, shuffle=st.randoms(use_true_random=False))
def test_order_does_not_matter(samples: list[tuple[str, dict[str, bytes]]], shuffle: object) -> None:
    other = [(key, dict(reversed(members.items()))) for key, members in samples]
    shuffle.shuffle(other)  # type: ignore[attr-defined]
    assert digest(other) == digest(samples)
    assert digest(samples[:1]) + digest(samples[1:]) == digest(samples)


@given(samples=SAMPLES)
def test_what_is_lost_doubled_or_swapped_shows(samples: list[tuple[str, dict[str, bytes]]]) -> None:
    whole = digest(samples)
    assert digest(samples[1:]).hex != whole.hex
    assert digest([samples[0], *samples]).hex != whole.hex
    assert digest([samples[0], samples[0], *samples[2:]]).hex != whole.hex
    (first, ours), (second, theirs), *rest = samples
    if ours != theirs:
        assert digest([(first, theirs), (second, ours), *rest]).hex != whole.hex
    assert digest([(first, {**ours, "jpg": ours.get("jpg", b"") + b"!"}), (second, theirs), *rest]).hex != whole.hex
    assert digest([(first + "x", ours), (second, theirs), *rest]).hex != whole.hex


def test_bytes_cannot_move_between_members_or_key_unseen() -> None:
    assert sample_hash("a", [("jpg", b"xy"), ("txt", b"")]) != sample_hash("a", [("jpg", b"x"), ("txt", b"y")])
    assert sample_hash("a", [("jpg", b"x")]) != sample_hash("a", [("txt", b"x")])
    assert sample_hash("ajpg", []) != sample_hash("a", [("jpg", b"")])


def test_a_digest_survives_its_marker() -> None:
    total = digest([("a", {"jpg": b"1"}), ("b", {})])
    assert SampleDigest.parse(total.count, total.hex) == total
    assert len(total.hex) == 32


def test_conservation_holds_only_when_both_sides_do() -> None:
    flow = Conservation()
    for number in range(5):
        value = sample_hash(str(number), [])
        flow.came_in.add(value)
        (flow.out if number % 2 else flow.refused).add(value)
    assert flow.holds()
    flow.out = SampleDigest(flow.out.count, flow.out.total + 1)
    assert not flow.holds()


def test_the_digest_of_keys_is_what_a_sidecar_shares_with_its_shard() -> None:
    assert keys_digest(["a", "b"]) == keys_digest(iter(["b", "a"]))
    assert keys_digest(["a", "b"]).hex != keys_digest(["a", "c"]).hex


def test_fingerprints_name_values_not_spellings() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 16


def test_differences_are_named_by_their_dotted_key() -> None:
    old = {"mapping": {"epsilon": 0.2, "loss": "noisy_or"}, "seed": 0, "gone": True}
    new = {"mapping": {"epsilon": 0.3, "loss": "noisy_or"}, "seed": 0, "came": [1]}
    assert difference(old, new) == ["came: (absent) -> [1]", "gone: true -> (absent)", "mapping.epsilon: 0.2 -> 0.3"]
