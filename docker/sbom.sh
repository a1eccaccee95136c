#!/bin/sh
# Lists the packages in an image as CycloneDX JSON: Python's in FOLDER/python.cdx.json, Debian's in debian.cdx.json.
#
#   docker/sbom.sh UV IMAGE FOLDER
#
# The two tools are not part of the image: they run in a container of it, from a folder that is mounted.
set -eu
uv=$1 image=$2 folder=$3
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

python=$(docker run --rm --network none "$image" python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$uv" pip install --quiet --target "$tools" --python-version "$python" --python-platform x86_64-manylinux_2_28 \
    --only-binary :all: cyclonedx-bom==7.5.0 debsbom==0.10.2

run() { # a tool and its arguments; PYTHONPATH would make the tools a part of the list
    docker run --rm --network none --read-only --tmpfs /tmp --volume "$tools:/tools:ro" "$image" python -c '
import runpy, sys
sys.path.insert(0, "/tools")
del sys.argv[0]
runpy.run_path(f"/tools/bin/{sys.argv[0]}", run_name="__main__")' "$@"
}

mkdir -p "$folder"
run cyclonedx-py environment --output-reproducible /opt/venv/bin/python >"$folder/python.cdx.json"
run debsbom generate --sbom-type cdx --out - >"$folder/debian.cdx.json" 2>"$tools/warnings" || {
    cat "$tools/warnings" >&2
    exit 1
}
echo "written: $folder/python.cdx.json, $folder/debian.cdx.json"
