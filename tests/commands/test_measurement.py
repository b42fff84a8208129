"""The measures of one model as printed lines."""

from tamperfuse.commands.measurement import Measurement
from tamperfuse.records.summary import Measure


def test_measures_without_an_interval_are_printed() -> None:
    measurement = Measurement({"benign_nll": {0: Measure(value=2.5, n=4), 1: Measure(value=None, n=0)}}, {})
    assert measurement.lines() == [
        "before: benign NLL 2.500 nats a token (no interval)",
        "step 1: benign NLL – nats a token (no interval)",
    ]


def test_an_attack_without_steps_has_one_state_after_it() -> None:
    rate = Measure(value=0.5, low=0.25, high=0.75, n=8)
    measurement = Measurement({"harmful_execution": {0: rate, 1: rate}}, {})
    assert measurement.lines(trains=False) == [
        "before: harmful execution 50.0% (25.0% to 75.0%, 8 prompts)",
        "after: harmful execution 50.0% (25.0% to 75.0%, 8 prompts)",
    ]
