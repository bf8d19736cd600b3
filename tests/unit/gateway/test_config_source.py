"""Deployments from elsewhere: only differences are applied, additions first."""

from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway.config_source import apply, difference


def entry(id_: str, model: str = "openai/a") -> dict:
    return {"model_name": "chat", "litellm_params": {"model": model}, "model_info": {"id": id_}}


class Running:
    def __init__(self, entries) -> None:
        self.entries = {e["model_info"]["id"]: e for e in entries}
        self.calls = []

    def upsert(self, entry) -> None:
        self.entries[entry["model_info"]["id"]] = entry
        self.calls.append("upsert")

    def delete(self, id_) -> None:
        del self.entries[id_]
        self.calls.append("delete")


LISTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["m1", "m2"]), max_size=6).map(
    lambda d: [entry(id_, model) for id_, model in d.items()]
)


@given(LISTS, LISTS)
def test_applying_the_difference_gives_what_is_wanted_in_the_fewest_steps(before, after):
    running, change = Running(before), difference(before, after)
    apply(change, running)
    assert running.entries == {e["model_info"]["id"]: e for e in after}
    assert len(running.calls) <= len(set(running.entries) | {e["model_info"]["id"] for e in before})
    assert running.calls == sorted(running.calls, reverse=True), "additions first: no group is empty in between"
    assert not difference(after, after)
