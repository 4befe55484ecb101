package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/driver"
)

var (
	_ driver.Inspector   = (*base)(nil)
	_ driver.Provisioner = (*base)(nil)

	errNoAggregate = errors.New("the id of the aggregate is empty")
)

const (
	// mostWait is how long an event may wait in the outbox before that is a finding.
	mostWait = 5 * time.Minute
	// mostSkew is by how much the clock of the database may differ from ours.
	mostSkew = 5 * time.Second
)

// Inspect implements [driver.Inspector]: tables that are missing or of another
// version, settings under which a commit can be lost, clocks that differ, an
// outbox that nobody sends, and stored names that lag or belong to nobody.
func (b *base) Inspect(ctx context.Context, topology driver.Topology, options driver.InspectOptions) (findings []driver.Finding, err error) {
	run := b.pool()
	find := func(severity driver.Severity, check, subject, what, why, fix string) {
		findings = append(findings, driver.Finding{Severity: severity, Check: check, Subject: subject, What: what, Why: why, Fix: fix})
	}
	if b.dialect.Inspect != nil {
		if findings, err = b.dialect.Inspect(ctx, run); err != nil {
			return findings, b.fail(err, "read settings")
		}
	}
	if err := b.Check(ctx); errors.Is(err, ErrSchema) {
		find(driver.Broken, "sql-schema", "tables of "+b.dialect.Name, err.Error(), "nothing can be stored in them", "run `tidings provision`, start the application with EVENT_MIGRATE=auto, or run what `tidings outbox schema` prints")
		return findings, nil
	} else if err != nil {
		return findings, err
	}
	asked := time.Now()
	var now int64
	if _, err := run.One(ctx, "SELECT {now}", nil, &now); err != nil {
		return findings, b.fail(err, "read the clock")
	}
	took := time.Since(asked)
	if skew := at(now).Sub(asked.Add(took / 2)).Abs(); skew > mostSkew+took {
		find(driver.Weak, "clock", b.dialect.Name, fmt.Sprintf("its clock and this machine's differ by %s", skew.Round(time.Second)),
			"start times of subscriptions and times of events do not fit together", "synchronise both with NTP")
	}
	status, err := b.Status(ctx)
	if err != nil {
		return findings, err
	}
	if status.Oldest > mostWait {
		find(driver.Broken, "outbox-backlog", "outbox", fmt.Sprintf("%d events are not sent, the oldest for %s", status.Backlog, status.Oldest.Round(time.Second)),
			"what was committed is not told to anybody", "look whether a relay runs (the application, or `tidings relay`) and what it logs")
	}
	if status.Held > 0 {
		find(driver.Weak, "outbox-held", "outbox", fmt.Sprintf("%d aggregates are held because the broker refuses their first event", status.Held),
			"their later events wait behind it", "`tidings outbox held` says why: usually too large; mend it and retry, or discard it")
	}
	stored, err := b.StoredSubscriptions(ctx, driver.StoredOptions{})
	if err != nil {
		return findings, err
	}
	return append(findings, driver.InspectStored(stored, topology, options)...), nil
}

// Provision implements [driver.Provisioner] as far as it looks: whoever has the
// store makes its tables with Migrate.
func (b *base) Provision(ctx context.Context, _ driver.Topology, _ bool) ([]driver.Resource, error) {
	r := driver.Resource{Kind: "tables", Name: b.schema.Prefix + "…", State: driver.ResourceThere, Detail: fmt.Sprintf("version %d", b.schema.Version())}
	if err := b.Check(ctx); errors.Is(err, ErrSchema) {
		r.State = driver.ResourceMissing
	} else if err != nil {
		return nil, err
	}
	return []driver.Resource{r}, nil
}

// Grants implements [driver.Provisioner]: what a user needs that does not migrate.
func (b *base) Grants(_ driver.Topology, principal string) []driver.Grant {
	if b.dialect.Grants == nil {
		return nil
	}
	var quoted []string
	for _, table := range tables {
		if b.schema.has(table) {
			quoted = append(quoted, b.dialect.Quote(table))
		}
	}
	if principal == "" {
		principal = "<user>"
	}
	return []driver.Grant{{What: b.dialect.Name + " grants", Text: b.dialect.Grants(quoted, principal)}}
}
