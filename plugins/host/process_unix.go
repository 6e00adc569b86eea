//go:build unix

package host

import (
	"os/exec"
	"syscall"
)

// ownGroup puts the child, and what it starts, into a process group of its own: an
// interrupt typed at the terminal does not reach it, and kill reaches all of it.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func killGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
