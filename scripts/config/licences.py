"""Which terms of use the user accepts; checked before anything runs."""

from scripts.config.base import Section


class LicencesConfig(Section):
    """Terms of datasets and of their images: the keywords in `scripts/adapters/*.yaml` and `custom.<name>.terms`."""

    allow: tuple[str, ...] = ()
    """If not empty, a configuration may use only data all of whose terms are among these."""
    refuse: tuple[str, ...] = ()
    """A configuration must not use data with any of these terms: `research-only`, `none-stated`, `OpenAI-terms`, ..."""

    def objections(self, terms: set[str]) -> list[str]:
        """Those of `terms` that are not acceptable, sorted."""
        return sorted(term for term in terms if term in self.refuse or (self.allow and term not in self.allow))
