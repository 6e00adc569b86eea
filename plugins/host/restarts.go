package host

import (
	"cmp"
	"math/rand/v2"
	"time"
)

// Restarts says how a process that keeps dying is treated. Zero fields have the
// values in brackets.
type Restarts struct {
	Min, Max time.Duration // the delay doubles with each crash, from Min [250 ms] to Max [30 s]
	Crashes  int           // so many crashes [5] …
	Window   time.Duration // … within so long [5 min] open the breaker:
	Pause    time.Duration // then one attempt is made each Pause [5 min]
	// Jitter returns a random number in [0, 1). Up to a quarter of each delay is
	// taken off by it.
	Jitter func() float64
}

func (r Restarts) withDefaults() Restarts {
	r.Min = cmp.Or(r.Min, 250*time.Millisecond)
	r.Max = cmp.Or(r.Max, 30*time.Second)
	r.Crashes = cmp.Or(r.Crashes, 5)
	r.Window = cmp.Or(r.Window, 5*time.Minute)
	r.Pause = cmp.Or(r.Pause, 5*time.Minute)
	if r.Jitter == nil {
		r.Jitter = rand.Float64
	}
	return r
}

// crashes remembers when a process died. Only its network's goroutine uses it.
type crashes struct {
	policy Restarts
	times  []time.Time // within the window, oldest first
	open   bool        // the breaker
}

// next records a crash of a process that lived so long, and returns how long to
// wait before the next attempt. A process that lived for the whole window, and
// nothing less, closes the breaker.
func (c *crashes) next(now time.Time, lived time.Duration) time.Duration {
	if lived >= c.policy.Window {
		c.times, c.open = nil, false
	}
	for len(c.times) > 0 && now.Sub(c.times[0]) >= c.policy.Window {
		c.times = c.times[1:]
	}
	c.times = append(c.times, now)
	c.open = c.open || len(c.times) >= c.policy.Crashes
	delay := c.policy.Pause
	if !c.open {
		delay = c.policy.Min
		for range c.times[1:] {
			delay = min(2*delay, c.policy.Max)
		}
	}
	return delay - time.Duration(c.policy.Jitter()*float64(delay)/4)
}
