"""⟨u, Jv⟩ = ⟨Jᵀu, v⟩ for each variant's Attention and for whole models, by every position scheme,
on every backend.
"""

from minqkv.analysis.selfcheck import checks


def test_every_check_of_the_command_holds(backend):
    found = list(checks(seed=1))
    assert len(found) > 35
    assert {name: fault for name, _, fault in found if fault} == {}
