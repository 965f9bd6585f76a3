# Recipes of the project. `./bootstrap.sh <recipe>` prepares the machine first; afterwards `just <recipe>` is the same.

# List the recipes
default:
    @"{{just_executable()}}" --list

# Run every test
test *args:
    cargo test --workspace {{args}}

# Format the sources
fmt:
    cargo fmt --all

# Check formatting and lints
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Run the golden cases of a folder
verify dir:
    cargo run --release -q -p reference --example verify -- {{dir}}

# Run the benches
bench *args:
    cargo bench -p benches {{args}}

# Build the documentation
doc:
    cargo doc --workspace --no-deps
