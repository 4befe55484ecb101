package tidings

import (
	"context"
	"log/slog"

	"github.com/tidings-go/tidings/driver"
)

// LogObserver returns an [Observer] that writes every step of every event to
// logger. A healthy service can live with the default level: what happens to
// each event as it should (published, received, handled, settled) is Debug, and so
// is each source that is given or taken in good order; duplicates and ignored
// events are Info; what needed another try, or a source that was lost, is Warn; what needs a person (dead letters, held and abandoned
// events, stuck handlers) is Error. Payloads are never logged.
//
// A bus has one with its Options.Logger; passing another adds a second log.
func LogObserver(logger *slog.Logger) Observer { return &logObserver{logger} }

type logObserver struct{ logger *slog.Logger }

func (l *logObserver) wants(k Kind) bool {
	return l.logger.Enabled(context.Background(), logLevel(Observation{Kind: k}))
}

func logLevel(o Observation) slog.Level {
	if o.Reason == reasonLacking && (o.Kind == Held || o.Kind == Parked) {
		return slog.LevelInfo // usual while a release is deployed; a warning was given once
	}
	switch o.Kind {
	case Published, Received, Started, Handled, Settled, Busy:
		return slog.LevelDebug
	case Deduplicated, Ignored, GuardOpened, Redriven, Resolved:
		return slog.LevelInfo
	case Held, DeadLettered, Overdue, Abandoned, Blocked, GuardClosed:
		return slog.LevelError
	case Reported:
		switch o.Report.Kind {
		case driver.ReportAssigned, driver.ReportRevoked: // one for each of many sources
			return slog.LevelDebug
		case driver.ReportResumed, driver.ReportRecovered, driver.ReportIgnored:
			return slog.LevelInfo
		case driver.ReportOutage:
			return slog.LevelError
		}
	}
	return slog.LevelWarn
}

// Observe implements [Observer].
func (l *logObserver) Observe(ctx context.Context, o Observation) {
	level := logLevel(o)
	if !l.logger.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 16)
	text := func(name, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(name, value))
		}
	}
	text("subscription", o.Subscription)
	text("type", o.Type)
	text("id", o.ID)
	text("aggregateId", o.AggregateID)
	text("correlationId", o.CorrelationID)
	if o.Version > 0 {
		attrs = append(attrs, slog.Int("version", o.Version))
	}
	if o.Attempt > 0 {
		attrs = append(attrs, slog.Int("attempt", o.Attempt))
	}
	if o.Duration > 0 {
		attrs = append(attrs, slog.Duration("duration", o.Duration))
	}
	if o.Wait > 0 {
		attrs = append(attrs, slog.Duration("wait", o.Wait))
	}
	if o.Count > 0 {
		attrs = append(attrs, slog.Int("count", o.Count))
	}
	text("reason", o.Reason)
	text("source", o.Source)
	message := "event " + o.Kind.String()
	if o.Kind == GuardClosed || o.Kind == GuardOpened {
		message = "subscription: " + o.Kind.String()
	}
	if o.Kind == Reported {
		message = "subscription " + o.Report.Kind.String()
		text("text", o.Report.Text)
		if o.Report.Duration > 0 {
			attrs = append(attrs, slog.Duration("duration", o.Report.Duration))
		}
	}
	if o.Err != nil {
		attrs = append(attrs, slog.String("error", o.Err.Error()))
	}
	l.logger.LogAttrs(ctx, level, message, attrs...)
}
