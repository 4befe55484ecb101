package sqldb

import (
	"context"
	"fmt"

	"github.com/tidings-go/tidings/driver"
)

var (
	_ driver.Inspector    = (*Driver)(nil)
	_ driver.Keeper       = (*Driver)(nil)
	_ driver.Renamer      = (*Driver)(nil)
	_ driver.Provisioner  = (*Driver)(nil)
	_ driver.Declarations = (*Driver)(nil)
)

// face is what the store behind the log has of something, or an error.
func face[T any](d *Driver, what string) (found T, err error) {
	if d.isClosed() {
		return found, driver.ErrClosed
	}
	found, ok := d.options.Log.(T)
	if !ok {
		return found, fmt.Errorf("sqldb: a %T cannot %s", d.options.Log, what)
	}
	return found, nil
}

// Inspect implements [driver.Inspector], as the store does.
func (d *Driver) Inspect(ctx context.Context, topology driver.Topology, options driver.InspectOptions) ([]driver.Finding, error) {
	store, err := face[driver.Inspector](d, "be inspected")
	if err != nil {
		return nil, err
	}
	return store.Inspect(ctx, topology, options)
}

// StoredSubscriptions implements [driver.Keeper], as the store does.
func (d *Driver) StoredSubscriptions(ctx context.Context, options driver.StoredOptions) ([]driver.StoredSubscription, error) {
	store, err := face[driver.Keeper](d, "list subscriptions")
	if err != nil {
		return nil, err
	}
	return store.StoredSubscriptions(ctx, options)
}

// DeleteSubscription implements [driver.Keeper], as the store does.
func (d *Driver) DeleteSubscription(ctx context.Context, name string) ([]string, error) {
	store, err := face[driver.Keeper](d, "delete a subscription")
	if err != nil {
		return nil, err
	}
	return store.DeleteSubscription(ctx, name)
}

// Rename implements [driver.Renamer], as the store does.
func (d *Driver) Rename(ctx context.Context, former string, s driver.Subscription) (int64, error) {
	store, err := face[driver.Renamer](d, "rename a subscription")
	if err != nil {
		return 0, err
	}
	return store.Rename(ctx, former, s)
}

// Declare implements [driver.Declarations], beside the positions.
func (d *Driver) Declare(ctx context.Context, subscription string, handled []driver.Declaration) ([]driver.Declaration, error) {
	if d.isClosed() {
		return nil, driver.ErrClosed
	}
	all, err := d.options.Log.Declare(ctx, subscription, handled)
	return all, d.failed(err)
}

// Declared implements [driver.Declarations].
func (d *Driver) Declared(ctx context.Context, subscription string) ([]driver.Declaration, error) {
	if d.isClosed() {
		return nil, driver.ErrClosed
	}
	all, err := d.options.Log.Declared(ctx, subscription)
	return all, d.failed(err)
}

// ForgetType implements [driver.Declarations]. It is [driver.ErrInUse] while an
// instance handles the last type of its channel.
func (d *Driver) ForgetType(ctx context.Context, subscription, eventType string) (bool, error) {
	if d.isClosed() {
		return false, driver.ErrClosed
	}
	known, err := d.options.Log.ForgetType(ctx, subscription, eventType)
	return known, d.failed(err)
}

// failed says which driver an error of the log is of.
func (d *Driver) failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("sqldb: %s: %w", d.options.Name, err)
}

// Provision implements [driver.Provisioner], as the store does.
func (d *Driver) Provision(ctx context.Context, topology driver.Topology, dry bool) ([]driver.Resource, error) {
	store, err := face[driver.Provisioner](d, "provision")
	if err != nil {
		return nil, err
	}
	return store.Provision(ctx, topology, dry)
}

// Grants implements [driver.Provisioner], as the store does.
func (d *Driver) Grants(topology driver.Topology, principal string) []driver.Grant {
	store, err := face[driver.Provisioner](d, "provision")
	if err != nil {
		return nil
	}
	return store.Grants(topology, principal)
}
