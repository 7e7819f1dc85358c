#!/bin/sh
# Installs into /opt/kinoflow while an image is built: `packages EXTRA…` what Kinoflow needs, in the lock's versions,
# without what never runs; then `kinoflow TARGET` itself.
set -eu
what=$1; shift
here=$(dirname "$0")
export VIRTUAL_ENV=/opt/kinoflow UV_NO_CACHE=1 UV_LINK_MODE=copy SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
packages() { echo "$VIRTUAL_ENV"/lib/python3*/site-packages; }
pip() { /uv/uv pip "$@"; }

if [ "$what" = kinoflow ]; then
  pip install --quiet --no-deps "$here"/dist/*.whl
  # The root is closed: what tasks import is compiled now or never.
  "$VIRTUAL_ENV"/bin/python -m components.smoke "$1"
  rm -rf "$here" "$VIRTUAL_ENV"/.lock
  find /tmp -mindepth 1 -delete
  exit
fi

extras=
executor=kfp
for extra in "$@"; do
  extras="$extras --extra $extra"
  if [ "$extra" = pipelines ]; then executor=; fi
done
/uv/uv venv --quiet "$VIRTUAL_ENV"
# shellcheck disable=SC2086 # one word per extra
UV_DEFAULT_INDEX=$INDEX_URL pip install --quiet --find-links /wheels \
  ${TORCH_BACKEND:+--torch-backend="$TORCH_BACKEND"} \
  --constraints "$here"/requirements.lock --requirements "$here"/pyproject.toml $extras
if [ -n "$executor" ]; then
  # With _KFP_RUNTIME=true Kubeflow's executor needs no other package.
  UV_DEFAULT_INDEX=$INDEX_URL pip install --quiet --no-deps --constraints "$here"/requirements.lock "$executor"
fi
find "$(packages)" -depth -type d \( -name tests -o -name test \) -not -path '*/torch/*' -exec rm -rf {} +
find "$(packages)" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' -o -name '*.c' -o -name '*.h' \
  -o -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -delete
rm -rf "$(packages)"/torch/include "$(packages)"/torch/share "$(packages)"/torch/test
