# Attacks from inside a function, for the hostile battery. Prints what came of one: `done`, or
# the number of the error (1 not permitted, 2 no such file, 11 try again, 13 denied, 27 too large,
# 28 no space, 30 read-only, 38 no such call). Uses nothing but the interpreter itself, not one module:
# the image has none.
$| = 1;
my ($attack, @args) = @ARGV;

# System calls by number: x86-64, else the table of newer machines.
my $x86 = $ENV{machine} eq "x86_64";
my %number = $x86
    ? (mount => 165, umount2 => 166, pivot_root => 155, ptrace => 101, keyctl => 250, add_key => 248,
       request_key => 249, bpf => 321, userfaultfd => 323, unshare => 272, setns => 308, mknodat => 259,
       perf_event_open => 298, init_module => 175, kexec_load => 246, reboot => 169, swapon => 167,
       open_by_handle_at => 304, process_vm_readv => 310, clone => 56, sethostname => 170,
       settimeofday => 164)
    : (mount => 40, umount2 => 39, pivot_root => 41, ptrace => 117, keyctl => 219, add_key => 217,
       request_key => 218, bpf => 280, userfaultfd => 282, unshare => 97, setns => 268, mknodat => 33,
       perf_event_open => 241, init_module => 105, kexec_load => 104, reboot => 142, swapon => 224,
       open_by_handle_at => 265, process_vm_readv => 270, clone => 220, sethostname => 161,
       settimeofday => 170);
$number{io_uring_setup} = 425;
$number{pidfd_getfd} = 438;
$number{mount_setattr} = 442;
$number{clone3} = 435;

sub told { print shift() ? "done" : $! + 0, "\n"; }
sub call { my $name = shift; $! = 0; told(syscall($number{$name}, @_) >= 0); }

if ($attack eq "call") {
    my $name = shift @args;
    call($name, map { /^-?\d+$/ ? $_ + 0 : "$_\0" } @args);
} elsif ($attack eq "attach") {
    # A child of the same user: nobody would be closer.
    my $child = fork;
    if (!$child) { sleep 5; exit; }
    call("ptrace", 16, $child, 0, 0);
    kill 9, $child;
    waitpid $child, 0;
} elsif ($attack eq "read") {
    # `empty` when there is nothing in it.
    if (open my $file, "<", $args[0]) {
        my $n = sysread($file, my $text, 64);
        print $n ? "done\n" : defined $n ? "empty\n" : ($! + 0) . "\n";
    } else { told(0); }
} elsif ($attack eq "write") {
    if (open my $file, ">", $args[0]) { told(syswrite($file, "1") && close $file); }
    else { told(0); }
} elsif ($attack eq "socket") {
    told(socket my $s, $args[0], $args[1], $args[2]);
} elsif ($attack eq "bind") {
    socket my $s, 2, 1, 0 or told(0);
    told(bind $s, pack "S n a4 x8", 2, $args[0], "\0\0\0\0");
} elsif ($attack eq "forge") {
    # A packet from an address that is somebody else's: freely bound (15), transparent (19).
    my ($from, $to, $port, $option) = @args;
    my $address = sub { pack "S n a4 x8", 2, $_[1], pack("C4", split(/\./, $_[0])) };
    socket my $s, 2, 2, 0 or told(0);
    setsockopt $s, 0, $option, pack("i", 1) or do { told(0); exit; };
    bind $s, $address->($from, 0) or do { told(0); exit; };
    told(send $s, "forged", 0, $address->($to, $port));
} elsif ($attack eq "fill") {
    # Writes a file until something stops it; tells the error and how many MiB there were.
    open my $file, ">", $args[0] or told(0);
    $SIG{XFSZ} = "IGNORE";
    my ($piece, $n) = ("x" x (1 << 20), 0);
    $n++ while $n < 4096 && (syswrite($file, $piece) // 0) == 1 << 20;
    print $! + 0, " $n\n";
} elsif ($attack eq "connections") {
    # Opens connections until one fails, and holds them all; tells the error and how many there were.
    my $to = pack "S n a4 x8", 2, $args[1], pack("C4", split(/\./, $args[0]));
    my @held;
    while (@held < $args[2]) {
        socket my $s, 2, 1, 0 or last;
        connect $s, $to or last;
        push @held, $s;
    }
    print $! + 0, " ", scalar @held, "\n";
} elsif ($attack eq "udp") {
    # Sends packets of a thousand bytes as fast as it goes.
    my $to = pack "S n a4 x8", 2, $args[1], pack("C4", split(/\./, $args[0]));
    socket my $s, 2, 2, 0 or told(0);
    send $s, $args[2] x 1000, 0, $to for 1 .. $args[3];
    print "done\n";
} elsif ($attack eq "inodes") {
    my $n = 0;
    while ($n < 1_000_000) { open my $file, ">", "$args[0]/$n" or last; $n++; }
    print $! + 0, " $n\n";
} elsif ($attack eq "flood") {
    # The log is the standard error here, the standard output is the answer.
    my $piece = "x" x 1023 . "\n";
    for (1 .. $args[0] << 10) { syswrite STDERR, $piece or last; }
    print "done\n";
} elsif ($attack eq "bomb") {
    # Forks until it cannot; the children stay for a while.
    my $n = 0;
    while ($n < 100_000) {
        my $child = fork;
        last unless defined $child;
        if (!$child) { sleep 5; exit; }
        $n++;
    }
    print $! + 0, " $n\n";
    kill 9, -getpgrp;
} elsif ($attack eq "ids") {
    print "$< $>\n";
} elsif ($attack eq "processes") {
    opendir my $proc, "/proc";
    print scalar(grep { /^\d+$/ } readdir $proc), "\n";
} elsif ($attack eq "list") {
    opendir my $folder, $args[0] or do { told(0); exit; };
    print join(" ", sort grep { !/^\.\.?$/ } readdir $folder), "\n";
} elsif ($attack eq "setuid") {
    # Runs the copy that belongs to root and says so.
    exec "/setuid-perl", "-e", 'print "$< $>\n"' or told(0);
} elsif ($attack eq "escalate") {
    # Puts the set-user-id bit on a program of its own and runs that.
    open my $in, "<", "/usr/bin/perl"; open my $out, ">", "/escalate"; local $/; my $text = <$in>; print $out $text; close $out;
    chmod 04755, "/escalate";
    exec "/escalate", "-e", 'print "$< $>\n"' or told(0);
}
