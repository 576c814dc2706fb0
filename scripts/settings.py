"""Explain a configuration, print its results folder, or write the reference of all configuration keys below docs/.

    python -m scripts.settings --explain recipes/own-real.yaml

prints every value of its models and runs and where it comes from: written, derived from which file, or default. Nothing
is downloaded but, where a value cannot be known otherwise, a few kilobytes of an encoder's configuration.
"""

from pathlib import Path

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.config.reference import generated
from scripts.config.settings import explained, read_configuration, read_yaml


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    choice = arguments.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true", help="write the JSON schema and the reference page below docs/")
    choice.add_argument("--results", metavar="CONFIG", help="print the results root of a configuration file")
    choice.add_argument("--explain", metavar="CONFIG", help="print the values of a configuration and their sources")
    options = arguments.parse_args()
    if options.explain:
        from scripts.inspection.explanation import explanation

        print(explanation(explained(read_yaml(Path(options.explain)))))
        return
    if options.results:
        print(read_configuration(Path(options.results)).results)
        return
    root = Path(__file__).resolve().parents[1]
    for name, text in generated().items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    run_program(main)
