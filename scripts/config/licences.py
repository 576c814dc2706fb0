"""Which terms of use the user accepts; checked before anything runs."""

from scripts.config.base import Section


class LicencesConfig(Section):
    """Terms of datasets and of their images, as `scripts/adapters/*.yaml` and `custom.<name>.terms` name them."""

    allow: tuple[str, ...] = ()
    """Only data all of whose terms are among these may be used. Empty: whatever is not refused."""
    refuse: tuple[str, ...] = ()
    """Data with any of these terms is refused, for example `research-only`, `none-stated` or `OpenAI-terms`."""

    def objections(self, terms: set[str]) -> list[str]:
        """Those of `terms` that are not acceptable, sorted."""
        return sorted(term for term in terms if term in self.refuse or (self.allow and term not in self.allow))
