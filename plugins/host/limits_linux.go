package host

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// limit bounds what a process may take.
func limit(pid int, l Limits) error {
	for resource, n := range map[int]int64{unix.RLIMIT_DATA: l.Memory, unix.RLIMIT_NOFILE: l.Files} {
		if n <= 0 {
			continue
		}
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: uint64(n), Max: uint64(n)}, nil); err != nil {
			return fmt.Errorf("limit plugin: %w", err)
		}
	}
	return nil
}
