"""Names of groups and layers in keys."""

from lightning_symmetry.keys import key_names


def test_two_names_that_differ_in_dots_alone_have_two_keys():
    assert key_names(["a.b_c", "a_b.c.weight", "d"]) == {"a.b_c": "a_b_c", "a_b.c.weight": "a_b_c_2", "d": "d"}


def test_modules_with_names_of_their_own_and_what_is_within_them_have_keys():
    assert list(key_names(["nets.q1,q2", "nets.{q1,q2}.0"]).values()) == ["nets_q1_q2", "nets_each_of_q1_q2_0"]


def test_the_star_of_a_list_of_modules_is_each_of_them():
    assert key_names(["heads.*.query", "heads.*.query.rotation"]) == {
        "heads.*.query": "heads_each_query",
        "heads.*.query.rotation": "heads_each_query_rotation",
    }
