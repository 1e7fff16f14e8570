"""The warning of collapse: when it is given, and when it is not repeated."""

from invnext_jax.monitoring.collapse_alarm import CollapseAlarm


def warnings(ratio, *values, name="latent_rank", records=()):
    alarm = CollapseAlarm(ratio, records)
    return [alarm.check({"step": n, name: value}) for n, value in enumerate(values, 1)]


def test_a_value_below_the_fraction_of_the_largest_is_reported_once_until_it_recovers():
    found = warnings(0.1, 5.0, 20.0, 3.0, 1.9, 1.5, 2.0, 1.9)
    assert [bool(text) for text in found] == [False] * 3 + [True, False, False, True]
    assert "latent_rank fell to 1.9 from 20 at step 2" in found[3]


def test_other_metrics_missing_values_and_ratio_0_give_no_warning():
    assert not any(warnings(0.1, 5.0, 0.0, name="loss"))
    assert not any(warnings(0.1, 5.0, None, 4.0))
    assert not any(warnings(0.0, 5.0, 0.0))


def test_earlier_records_of_a_resumed_run_count():
    records = [{"step": 1, "prediction_std": 0.5}]
    (found,) = warnings(0.1, 0.04, name="prediction_std", records=records)
    assert "prediction_std fell to 0.04 from 0.5 at step 1" in found
