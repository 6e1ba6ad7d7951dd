//! Who a replica's process is: the image's `USER`, looked up in the image's own files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// Most bytes read of an image's `/etc/passwd` or `/etc/group`.
const FILE_MAX: u64 = 1 << 20;

/// A process's user and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Further groups that name the user as a member.
    pub(crate) groups: Vec<u32>,
    /// The home folder, `/` when the image names none.
    pub(crate) home: String,
}

/// Resolves `user[:group]` of an image whose files are at `root`.
///
/// # Errors
/// A sentence for people when the image does not know the name.
pub(crate) fn resolve(root: &Path, user: &str) -> Result<User, String> {
    resolve_in(user, &read(root, "etc/passwd"), &read(root, "etc/group"))
}

/// Reads a file of the image without leaving it, whatever links the image holds; a missing one
/// is empty.
fn read(root: &Path, path: &str) -> String {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, root, flags, Mode::empty()).and_then(|root| {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    });
    let mut bytes = Vec::new();
    if let Ok(file) = opened {
        // A file that cannot be read names nobody, like one that is missing.
        drop(File::from(file).take(FILE_MAX).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn resolve_in(user: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6
            && match number {
                Some(uid) => fields[2].parse() == Ok(uid),
                None => fields[0] == name,
            }
    });
    let (uid, own_gid, home, login) = match (entry, number) {
        (Some(fields), _) => {
            let uid = fields[2].parse().map_err(|_| wrong_line("passwd", name))?;
            let gid = fields[3].parse().map_err(|_| wrong_line("passwd", name))?;
            (uid, gid, fields[5].to_owned(), fields[0].to_owned())
        }
        (None, Some(uid)) => (uid, 0, String::new(), String::new()),
        (None, None) => {
            return Err(format!("the image's user `{name}` is not in its /etc/passwd"));
        }
    };
    let groups = group.lines().filter_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        Some((*fields.first()?, fields.get(2)?.parse::<u32>().ok()?, *fields.get(3)?))
    });
    let gid = match group_name {
        None => own_gid,
        Some(wanted) => match wanted.parse() {
            Ok(gid) => gid,
            Err(_) => groups
                .clone()
                .find(|(name, ..)| *name == wanted)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| format!("the image's group `{wanted}` is not in its /etc/group"))?,
        },
    };
    // As other runtimes do it: a group that is named alone replaces the memberships.
    let is_member =
        |members: &str| !login.is_empty() && members.split(',').any(|member| member == login);
    let groups = match group_name {
        Some(_) => Vec::new(),
        None => groups.filter(|(.., members)| is_member(members)).map(|(_, gid, _)| gid).collect(),
    };
    let home = if home.is_empty() { "/".to_owned() } else { home };
    Ok(User { uid, gid, groups, home })
}

fn wrong_line(file: &str, name: &str) -> String {
    format!("the line of `{name}` in the image's /etc/{file} is wrong")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:100:101:App:/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\napp:x:101:\nextra:x:200:other,app\n";

    fn check(user: &str, expected: (u32, u32, &[u32], &str)) {
        let user = resolve_in(user, PASSWD, GROUP).unwrap();
        let (uid, gid, groups, home) = expected;
        assert_eq!(user, User { uid, gid, groups: groups.to_vec(), home: home.to_owned() });
    }

    #[test]
    fn a_user_is_found_by_name_number_and_group() {
        check("", (0, 0, &[], "/root"));
        check("app", (100, 101, &[200], "/home/app"));
        check("100", (100, 101, &[200], "/home/app"));
        check("app:extra", (100, 200, &[], "/home/app"));
        check("1234", (1234, 0, &[], "/"));
        check("1234:77", (1234, 77, &[], "/"));
    }

    #[test]
    fn an_unknown_name_is_told() {
        assert!(resolve_in("nobody", PASSWD, GROUP).unwrap_err().contains("`nobody`"));
        assert!(resolve_in("app:none", PASSWD, GROUP).unwrap_err().contains("`none`"));
    }

    #[test]
    fn a_link_in_the_image_does_not_lead_out_of_it() {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", image.path().join("etc/passwd")).unwrap();
        assert_eq!(read(image.path(), "etc/passwd"), "");
    }
}
