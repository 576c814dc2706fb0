"""The base of all configuration sections: strict, immutable, documented by the strings under their fields."""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict

from scripts.common.files import canonical_json


class Section(BaseModel):
    """A part of the configuration that one stage reads. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def rerun_key(self, only: Collection[str] = (), without: Collection[str] = (), **extra: Any) -> str:
        """The section as canonical JSON without values equal to their defaults: what makes a rule run again.

        Args:
            only: keep just these keys, where a step reads a part of the section.
            without: leave these keys out, where they do not change what the step makes.
            extra: keys from elsewhere that the step reads too.
        """
        values = self.model_dump(mode="json", exclude_defaults=True)
        chosen = {key: value for key, value in values.items() if (not only or key in only) and key not in without}
        return canonical_json(chosen | extra)
