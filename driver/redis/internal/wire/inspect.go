package wire

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

// InspectServer compares the settings of a Redis with what keeps events in it. A
// server that does not tell its settings is not judged by them.
func InspectServer(ctx context.Context, client rueidis.Client) (findings []driver.Finding) {
	find := func(severity driver.Severity, check, what, why, fix string) {
		findings = append(findings, driver.Finding{Severity: severity, Check: "redis-" + check, Subject: "redis", What: what, Why: why, Fix: fix})
	}
	settings := make(map[string]string)
	for _, name := range []string{"maxmemory", "maxmemory-policy", "appendonly", "appendfsync"} {
		values, err := client.Do(ctx, client.B().ConfigGet().Parameter(name).Build()).AsStrMap()
		if err != nil {
			return nil
		}
		settings[name] = values[name]
	}
	limit, policy := settings["maxmemory"], settings["maxmemory-policy"]
	switch {
	case policy == "" || policy == "noeviction":
	case strings.HasPrefix(policy, "volatile-"):
		find(driver.Weak, "eviction", fmt.Sprintf("maxmemory is %s and maxmemory-policy %s", limit, policy),
			"Redis may delete dedup keys, which have an end: events are handled twice", "set maxmemory-policy noeviction")
	default:
		find(driver.Weak, "eviction", fmt.Sprintf("maxmemory is %s and maxmemory-policy %s", limit, policy),
			"Redis may delete streams with events in them", "set maxmemory-policy noeviction")
	}
	switch {
	case settings["appendonly"] == "no":
		find(driver.Weak, "appendonly", "appendonly is no", "a restart of Redis loses events that were published", "set appendonly yes and appendfsync always")
	case settings["appendonly"] == "yes" && settings["appendfsync"] != "always":
		find(driver.Weak, "appendfsync", "appendfsync is "+settings["appendfsync"], "a crash of the machine loses the last events that were published", "set appendfsync always")
	}
	return findings
}

// nearlyFull is the part of maxmemory from which on it is a finding.
const nearlyFull = 0.9

// mostSkew is by how much the clock of a server may differ from ours.
const mostSkew = 5 * time.Second

// InspectState looks at what changes while a Redis runs: memory and clock.
func InspectState(ctx context.Context, client rueidis.Client) (findings []driver.Finding) {
	if info, err := client.Do(ctx, client.B().Info().Section("memory").Build()).ToString(); err == nil {
		used, limit := field(info, "used_memory"), field(info, "maxmemory")
		if limit > 0 && float64(used) > nearlyFull*float64(limit) {
			findings = append(findings, driver.Finding{
				Severity: driver.Weak, Check: "redis-memory", Subject: "redis", What: fmt.Sprintf("%d of %d bytes are used", used, limit),
				Why: "when it is full nothing can be published", Fix: "look for subscriptions that lag (`tidings subscription ls`), or raise maxmemory",
			})
		}
	}
	asked := time.Now()
	parts, err := client.Do(ctx, client.B().Time().Build()).AsIntSlice()
	if err == nil && len(parts) == 2 {
		took := time.Since(asked)
		if skew := time.Unix(parts[0], parts[1]*1000).Sub(asked.Add(took / 2)).Abs(); skew > mostSkew+took {
			findings = append(findings, driver.Finding{
				Severity: driver.Weak, Check: "clock", Subject: "redis", What: fmt.Sprintf("its clock and this machine's differ by %s", skew.Round(time.Second)),
				Why: "start times of subscriptions and times of events do not fit together", Fix: "synchronise both with NTP",
			})
		}
	}
	return findings
}

// field is a number in the text of INFO, or 0.
func field(info, name string) int64 {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			n, _ := strconv.ParseInt(value, 10, 64)
			return n
		}
	}
	return 0
}
