#!/bin/sh
# install_apptainer.sh: what tests/containers need, as root on Debian, in .venvs/apptainer:
# bin/apptainer (Debian's own, of its unstable suite, with its C library in a private folder, so
# that the system stays as it is), and base/, a small Debian with Python made from its packages.
set -eu
cd "$(dirname "$0")/.."
mkdir -p .venvs
home=$(cd .venvs && pwd -P)/apptainer
test -e "$home/stamp" && exit
echo "Installing Apptainer and a base image into $home ..." >&2
rm -rf "$home" && mkdir -p "$home/bin" "$home/apt/lists/partial" "$home/debs" "$home/tree"

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' | awk -v s="$suite" '$2 == s {print $1; exit}')

apt_of_unstable() {
    apt-get -qq -o Acquire::Retries=3 -o APT::Sandbox::User=root -o Dir::Cache="$home/apt" \
        -o Dir::State::lists="$home/apt/lists" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::sourcelist="$home/apt/sources.list" "$@"
}
echo "deb $mirror unstable main" > "$home/apt/sources.list"
apt_of_unstable update
(cd "$home/debs" && apt_of_unstable download apptainer libc6 libseccomp2 libsqlite3-0)
for package in "$home"/debs/*.deb; do
    dpkg-deb --extract "$package" "$home/tree"
done
rm -rf "$home/apt" "$home/debs"

usr=$home/tree/usr
libraries=$(dirname "$(find "$usr/lib" -name 'libc.so.6')")
starter=$(find "$usr" -path '*/bin/starter')
for program in "$usr/bin/apptainer" "$starter"; do
    patchelf --set-interpreter "$(find "$libraries" -name 'ld-linux*')" \
        --force-rpath --set-rpath "$libraries" "$program"
done
# A program that was moved looks beside its bin/ for the rest; both programs have one.
mv "$home/tree/etc" "$usr/etc"
mkdir -p "$usr/var/lib/apptainer/mnt/session" "$usr/lib/var/lib/apptainer/mnt/session"
# Root in a container lacks some capabilities, and asking for what it lacks is an error.
sed -i 's/^root default capabilities.*/root default capabilities = no/' "$usr/etc/apptainer/apptainer.conf"
cat > "$home/bin/apptainer" <<EOF
#!/bin/sh
# A build asks for all capabilities; in a user namespace of its own root has them.
test "\$1" = build && exec unshare --user --map-root-user --mount "$usr/bin/apptainer" "\$@"
exec "$usr/bin/apptainer" "\$@"
EOF
chmod +x "$home/bin/apptainer"

# Unpacked, not configured: a tenth of the time, and Python needs no more.
mmdebstrap --quiet --mode=root --variant=extract \
    --include=base-files,base-passwd,dash,bash,coreutils,grep,sed,findutils,libc-bin,libstdc++6,python3-venv \
    "$suite" "$home/base" "$mirror"
cp "$home/base/usr/share/base-passwd/passwd.master" "$home/base/etc/passwd"
cp "$home/base/usr/share/base-passwd/group.master" "$home/base/etc/group"
find "$home/base" \( -type b -o -type c \) -exec rm -f {} +
chown -R -h 0:0 "$home/base" # the only owner that a user namespace knows
"$home/bin/apptainer" --version > "$home/stamp"
