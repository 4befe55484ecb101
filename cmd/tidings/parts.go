package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/setup"
)

// parts opens what the environment names: the driver, unless it is in memory, and
// the database, unless it is the driver's own. The driver comes first: it knows
// who is alive, and is asked whether its broker answers. Of a driver over the
// database only the verb finds out: its tables may be missing.
func (s *session) parts(ctx context.Context, ask bool) (all []part, err error) {
	config := s.config()
	name := config.DriverName()
	overDatabase := name == "postgres" || name == "sqlite"
	if name != "in-memory" {
		d, err := s.driver(ctx)
		if err != nil {
			return nil, err
		}
		if checker, ok := d.(driver.Checker); ok && ask && !overDatabase {
			asking, cancel := context.WithTimeout(ctx, brokerTime)
			defer cancel()
			if err := checker.Check(asking); err != nil {
				return nil, fmt.Errorf("EVENT_DRIVER=%s: the broker was asked and did not answer as it should: %w", name, err)
			}
		}
		all = append(all, part{"driver " + name, d})
	}
	claims, closer, err := setup.OpenClaims(config)
	if err != nil {
		return nil, err
	}
	if claims != nil {
		s.onClose(func(context.Context) error { return closer.Close() })
		all = append(all, part{"claims", claims})
	}
	if overDatabase {
		return all, nil
	}
	database, err := s.database(nil)
	switch {
	case errors.Is(err, setup.ErrNoDatabase):
	case err != nil:
		return nil, err
	default:
		all = append(all, part{"database", database})
	}
	if len(all) == 0 {
		return nil, usageError{errNothingNamed}
	}
	return all, nil
}
