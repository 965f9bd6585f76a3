# Recipes of the project. `./bootstrap.sh <recipe>` prepares the machine first; afterwards `just <recipe>` is the same.

# List the recipes
default:
    @"{{just_executable()}}" --list

# Train a video tokenizer and a generator on synthetic clips, evaluate both, write runs/quickstart/report.html
quickstart *args:
    cargo run --release -q -p experiments -- run experiments/configs/quickstart.toml {{args}}

# The binary with any arguments: `just vireo describe experiments/configs/magvit2-paper.toml`
vireo *args:
    cargo run --release -q -p experiments -- {{args}}

# Run configs by name one after the other and print a table: `just ablation quickstart quickstart-no-warmup`
ablation +names:
    for name in {{names}}; do cargo run --release -q -p experiments -- run experiments/configs/$name.toml || exit 1; done
    cargo run --release -q -p experiments -- compare $(for name in {{names}}; do echo runs/$name; done)

# Train at every compression from 4×4×4 to 8×8×8 and print a table
compression: (ablation "compression-4x4x4" "compression-4x8x8" "compression-8x4x4" "compression-8x8x8")

# Train VAR at six widths and fit power laws of its loss: runs/scaling-var/scaling.html (one thread: the networks are small)
scaling *args:
    cargo run --release -q -p experiments -- --threads 1 scaling experiments/configs/scaling-var.toml --widths 16,32,48,64,96,128 {{args}}

# Train a masked generator with each of three masking strategies on the quickstart's tokens and print a table
masking: (ablation "quickstart" "masking-maskgit" "masking-magvit" "masking-muse")

# Teach Perceiver AR to repeat 512 bytes backwards; prints the accuracy on held-out sequences
copy-task *args:
    cargo run --release -q -p experiments -- copy-task experiments/configs/copy-task.toml {{args}}

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
    cargo run --release -q -p experiments -- verify {{dir}}

# Run the benches
bench *args:
    cargo bench -p benches {{args}}

# Build the documentation
doc:
    cargo doc --workspace --no-deps
