"""What the server says of itself holds: schemathesis sends what its own description allows, and what it forbids."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import serving

from unmask.decoding.language_model import LanguageModel
from unmask.serving.settings import Settings

BOUNDED = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


KEY = {"Authorization": "Bearer one"}

MALFORMABLE = (
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "POST /v1/score",
    "POST /tokenize",
    "POST /detokenize",
)
"""What takes a body of known fields."""


@pytest.fixture(scope="module")
def description(model: LanguageModel) -> Iterator[Any]:
    with serving(model, Settings("tiny", max_tokens=3, max_choices=2, api_keys=("one",))) as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def operations(description: Any) -> dict[str, Any]:
    found = [each.ok() for each in description.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_what_the_description_allows_is_answered_as_described(description: Any) -> None:
    # A request may be well formed and ask for what the model cannot do, so a 400 is no fault here.
    for operation in operations(description).values():

        @given(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        @BOUNDED
        def check(case: Any) -> None:
            case.call_and_validate(headers=KEY, excluded_checks=[positive_data_acceptance])

        check()


@pytest.mark.parametrize("label", MALFORMABLE)
def test_what_the_description_forbids_is_refused(description: Any, label: str) -> None:
    # Which is also the proof that no field is accepted and ignored.
    @given(operations(description)[label].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    @BOUNDED
    def check(case: Any) -> None:
        case.call_and_validate(headers=KEY)

    check()


def test_every_body_of_known_fields_is_malformed(description: Any) -> None:
    with_body = {label for label, operation in operations(description).items() if operation.body}
    assert with_body == {*MALFORMABLE, "POST /v1/embeddings"}
