#!/bin/sh
# Takes from a base image what no task needs: package installers of Python, and every way to become another user.
set -eu
echo 'kinoflow:x:65532:65532:Kinoflow:/tmp:/usr/sbin/nologin' >>/etc/passwd
echo 'kinoflow:x:65532:' >>/etc/group
for folder in /usr /opt; do
  find "$folder" -xdev -depth -type d -path '*/python3*' \
    \( -name pip -o -name 'pip-*' -o -name ensurepip -o -name setuptools -o -name 'setuptools-*' -o -name 'wheel-*' \
    -o -name wheel -o -name pkg_resources -o -name lib2to3 -o -name idlelib -o -name turtledemo \) -exec rm -rf {} +
  find "$folder" -xdev \( -name 'pip' -o -name 'pip3*' -o -name 'uv' -o -name 'uvx' -o -name '2to3*' -o -name 'idle3*' \) \
    \( -type f -o -type l \) -path '*/bin/*' -exec rm -f {} +
done
find / -xdev -type f -perm /6000 -exec chmod a-s {} +
rm -rf /root/.cache /var/cache/ldconfig /usr/share/python-wheels
