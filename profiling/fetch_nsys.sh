#!/usr/bin/env bash
# Unpacks Nsight Systems from the distribution's non-free packages into the folder given (build/nsys).
# Nothing is installed: the packages would bring a display driver along, and a profile of NVTX ranges needs
# none, nor a GPU. Everything apt writes stays in that folder, so no root is needed either. The licence is
# NVIDIA's, so the tool is fetched and never kept in the repository.
set -euo pipefail
target=${1:-build/nsys}
fail() { echo "make nsys: $1" >&2; exit 1; }

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
  fail "this needs Debian or Ubuntu (apt-get); elsewhere install Nsight Systems from NVIDIA, nsys on the PATH"
. /etc/os-release
case "$ID" in
  debian) component=non-free keys=/usr/share/keyrings/debian-archive-keyring.gpg ;;
  ubuntu) component=multiverse keys=/usr/share/keyrings/ubuntu-archive-keyring.gpg ;;
  *) fail "no package of Nsight Systems is known for $ID: install it from NVIDIA, nsys on the PATH" ;;
esac

# The mirror that this machine uses already, with the component that it may lack.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
  awk -v release="$VERSION_CODENAME" '$2 == release && $3 == "main" && !n++ { print $1 }')
[ -n "$mirror" ] || fail "apt has no source of $VERSION_CODENAME main: see /etc/apt/sources.list"

mkdir -p "$target"
target=$(cd "$target" && pwd)
rm -rf "$target/apt" "$target/root" "$target/packages" "$target/bin"
mkdir -p "$target/apt/lists/partial" "$target/apt/archives/partial" "$target/packages"
echo "deb [signed-by=$keys] $mirror $VERSION_CODENAME main $component" >"$target/apt/sources.list"
options=(-qq
  -o Dir::Etc::sourcelist="$target/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o Dir::State::lists="$target/apt/lists" -o Dir::Cache="$target/apt" -o APT::Sandbox::User=
  -o Acquire::Languages=none -o Acquire::Retries=3)

echo "make nsys: fetching Nsight Systems (about 170 MB)" >&2
apt-get "${options[@]}" update || fail "apt-get update failed for the component $component"
cd "$target/packages"
apt-get "${options[@]}" download nsight-systems nsight-systems-target libssh-4 ||
  fail "$VERSION_CODENAME $component has no nsight-systems for $(dpkg --print-architecture)"
for package in *.deb; do dpkg-deb -x "$package" "$target/root"; done
cd "$target"

# The package leaves this link to its post-installation script.
library=$(echo root/usr/lib/*/nsight-systems)
for host in "$library"/../../nsight-systems/host-linux-* root/usr/lib/nsight-systems/host-linux-*; do
  [ -d "$host" ] && ln -sfn "../../nsight-systems/${host##*/}" "$library/${host##*/}"
done
rm -rf apt packages
found=$(find root -path '*/target-linux-*/nsys' -type f -perm -u+x | head -n 1)
[ -n "$found" ] || fail "the packages hold no program called nsys"
"$found" --version >&2 || fail "$found does not run"
mkdir bin
cat >bin/nsys <<END
#!/bin/sh
here=\$(cd "\$(dirname "\$(readlink -f "\$0")")/.." && pwd)
export LD_LIBRARY_PATH="\$here/${library%/nsight-systems}\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "\$here/$found" "\$@"
END
chmod +x bin/nsys
