"""Print the results folder of a configuration, or write the reference of all configuration keys below docs/."""

from pathlib import Path

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.config.reference import generated
from scripts.config.settings import read_configuration


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    choice = arguments.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true", help="write the JSON schema and the reference page below docs/")
    choice.add_argument("--results", metavar="CONFIG", help="print the results root of a configuration file")
    options = arguments.parse_args()
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
