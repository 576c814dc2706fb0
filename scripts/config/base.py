"""The base of all configuration sections: strict, immutable, documented by the strings under their fields."""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict

from scripts.common.files import canonical_json


class Section(BaseModel):
    """A part of the configuration that one stage reads. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def rerun_key(self, only: Collection[str] = (), without: Collection[str] = (), **extra: Any) -> str:
        """The section as canonical JSON, without values equal to their defaults. A rule runs again when it changes.

        Args:
            only: keep only these keys, if a step reads a part of the section.
            without: leave out these keys, which do not change the output of the step.
            extra: values from elsewhere that the step also reads.
        """
        values = self.model_dump(mode="json", exclude_defaults=True)
        kept = {key: value for key, value in values.items() if (not only or key in only) and key not in without}
        return canonical_json(kept | extra)
