#!/usr/bin/env bash
# Wheel and sdist: built, installed where nothing of this folder is, and tried. DEMO=1 runs the whole demo there.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$python" -m venv "$place/build"
"$place/build/bin/pip" install --quiet --disable-pip-version-check build
"$place/build/bin/python" -m build --outdir "$place/dist" "$root"
ls -l "$place"/dist

"$python" -m venv "$place/wheel"
"$place/wheel/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$(echo "$place"/dist/*.whl)[all]"
cd "$place"
zippkit=$place/wheel/bin/zippkit
"$zippkit" --version
"$zippkit" recipes ls
"$zippkit" recipes cp demo mine
"$zippkit" check mine/recipe.yaml
"$zippkit" verify mine/spec.yaml
if [ "${DEMO:-}" = 1 ]; then
  "$zippkit" demo
else
  "$zippkit" train mine/recipe.yaml --out run train.steps=2 pretrain.text.steps=2 pretrain.speech.steps=2 evaluate.limit=2
  "$zippkit" eval run
fi

"$python" -m venv --system-site-packages "$place/sdist"
"$place/sdist/bin/pip" install --quiet --disable-pip-version-check --no-deps "$place"/dist/*.tar.gz
tar tzf "$place"/dist/*.tar.gz | grep -q recipes/demo/recipe.yaml
echo "release-check: wheel and sdist are whole"
